"""English contractions and what they stand for, as TorchServe's text models were trained with them."""

from __future__ import annotations

_NOT = {
    "ain": "is", "aren": "are", "can": "can", "couldn": "could", "didn": "did", "doesn": "does", "don": "do",
    "hadn": "had", "hasn": "has", "haven": "have", "isn": "is", "mayn": "may", "mightn": "might", "mustn": "must",
    "needn": "need", "oughtn": "ought", "shan": "shall", "shouldn": "should", "wasn": "was", "weren": "were",
    "won": "will", "wouldn": "would",
}  # fmt: skip
_ENDINGS = {
    "'ve have": "could i might must should so they to we what when where who why will would you",
    "'d would": "he i it she that there they we you",
    "'d did": "how where",
    "'ll will": "he how i it she they we what who you",
    "'s is": "he how it she that there what when where who why",
    "'re are": "they we what you",
}
_ODD = {
    "can't": "cannot",
    "'cause": "because",
    "i'm": "i am",
    "let's": "let us",
    "ma'am": "madam",
    "o'clock": "of the clock",
    "sha'n't": "shall not",
    "so's": "so as",
    "y'all": "you all",
}

CONTRACTION_MAP = (
    {f"{stem}'t": f"{verb} not" for stem, verb in _NOT.items()}
    | {
        stem + ending.split()[0]: f"{stem} {ending.split()[1]}"
        for ending, stems in _ENDINGS.items()
        for stem in stems.split()
    }
    | _ODD
)

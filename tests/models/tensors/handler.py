"""Answers the Open Inference Protocol by itself: each input comes back as an output named after it, `_out` added."""

import time

from torchd_workers.streaming import send_intermediate_predict_response


def handle(data, context):
    """What a request's parameter `do` names: text, fail, refuse, wait, seen, stream; else an echo of its tensors."""
    if data is None:
        return None
    return [_answer(index, row["body"], context) for index, row in enumerate(data)]


def _answer(index, body, context):
    wish = (body.get("parameters") or {}).get("do", "")
    if wish == "text":
        return "just text"
    if wish == "fail":
        raise ValueError("the handler does not like it")
    if wish == "refuse":
        context.set_response_status(422, "no", index)
        return "refused"
    if wish == "wait":
        while not context.running[index].over:
            time.sleep(0.01)
    if wish == "seen":
        return _outputs(body, [_output("seen", "BYTES", [repr(sorted(body)), repr(body["inputs"])])])
    if wish == "stream":
        for number in range(2):
            chunk = _outputs(body, [_output("number", "INT32", [number])])
            send_intermediate_predict_response([chunk], {index: context.get_request_id(index)}, "", 200, context)
        return _outputs(body, [_output("number", "INT32", [2])])
    return _outputs(body, [_echo(tensor) for tensor in body["inputs"]])


def _echo(tensor):
    output = {**tensor, "name": f"{tensor['name']}_out"}
    if tensor["datatype"] == "BYTES":
        output["parameters"] = {"content_type": "base64"}
    return output


def _output(name, datatype, data):
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data}


def _outputs(body, outputs):
    return {"model_name": body.get("model_name", ""), "parameters": {"batch": True}, "outputs": outputs}

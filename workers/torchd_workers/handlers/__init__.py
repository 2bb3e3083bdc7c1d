"""The handlers that torchd brings: the name an archive gives, and the module with the class. A new one is a row."""

HANDLERS = {
    name: f"torchd_workers.handlers.{module}"
    for name, module in {
        "base_handler": "base",
        "base_deepspeed_handler": "distributed.base_deepspeed_handler",
        "base_pippy_handler": "distributed.base_pippy_handler",
        "dali_handler": "dali_handler",
        "dali_image_classifier": "dali_image_classifier",
        "densenet_handler": "densenet_handler",
        "image_classifier": "image_classifier",
        "image_segmenter": "image_segmenter",
        "object_detector": "object_detector",
        "parallel_handler": "parallel.handler",
        "text_classifier": "text_classifier",
        "text_handler": "text_handler",
        "traced_handler": "traced",
        "trt_llm_handler": "trt_llm_handler",
        "vision_handler": "vision_handler",
        "vllm_handler": "vllm_handler",
    }.items()
}

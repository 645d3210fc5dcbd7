"""One linear layer, 4096 x 4096, NF4 with double quantization and LoRA of rank 16, on 512 tokens, on the CPU.

bitsandbytes' Linear4bit adapted by peft, as a training step uses it: `linear_forward` keeps what backward needs,
`linear_forward_backward` also computes the gradients of the input and of both adapter matrices.
"""

from collections import OrderedDict

import measurement

FEATURES, TOKENS, RANK, ALPHA = 4096, 512, 16, 32
CONFIGURATIONS = [f"{name}/{dtype}" for dtype in ("f32", "bf16") for name in ("linear_forward", "linear_forward_backward")]


def measure(configuration, options):
    import bitsandbytes as bnb
    import torch
    from peft import LoraConfig, get_peft_model

    name, dtype_name = configuration.split("/")
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype_name]
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    layer = bnb.nn.Linear4bit(
        FEATURES, FEATURES, bias=False, compute_dtype=dtype, quant_type="nf4", compress_statistics=True
    )
    # As a checkpoint in that dtype would be: bitsandbytes dequantizes to the dtype that it quantized from.
    layer.weight.data = layer.weight.data.to(dtype)
    layer = layer.to("cpu")  # quantizes
    assert layer.weight.quant_state.dtype == dtype
    assert layer.weight.dtype == torch.uint8
    model = torch.nn.Sequential(OrderedDict(linear=layer))
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=["linear"]))
    model.train()
    # B starts at zero: the gradient of A would be zero too.
    torch.nn.init.normal_(model.base_model.model.linear.lora_B["default"].weight, std=0.02)

    x = torch.randn(TOKENS, FEATURES, dtype=dtype, requires_grad=True)
    gradient = torch.randn(TOKENS, FEATURES, dtype=dtype)

    def forward():
        return model(x)

    def forward_backward():
        x.grad = None
        model.zero_grad(set_to_none=True)
        model(x).backward(gradient)

    run = forward if name == "linear_forward" else forward_backward
    result = measurement.timed(run, options)
    if run is forward_backward:
        adapters = [p.grad for p in model.parameters() if p.requires_grad]
        assert x.grad is not None and len(adapters) == 2 and all(g is not None for g in adapters)
    return {"name": name, "dtype": dtype_name, "tokens": TOKENS, **result}


if __name__ == "__main__":
    measurement.main(measurement.arguments(__doc__).parse_args(), CONFIGURATIONS, measure)

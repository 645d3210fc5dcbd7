"""One training step of SmolLM2-135M on the CPU with transformers + peft (+ bitsandbytes).

A step is forward, loss, backward, clipping by the global norm and AdamW on the adapters: LoRA of rank 16 on the seven
linear layers of every block, no dropout, no gradient checkpointing. `step_qlora_*` has an NF4 base with double
quantization, `step_lora_*` a dense one. Token ids are random.
"""

import os

import measurement

RANK, ALPHA = 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {"4x64": (4, 64), "1x512": (1, 512)}
CONFIGURATIONS = [
    "step_qlora_4x64/f32",
    "step_qlora_1x512/f32",
    "step_qlora_4x64/bf16",
    "step_qlora_1x512/bf16",
    "step_lora_4x64/f32",
]


def language_model(gguf, dtype):
    """SmolLM2-135M, with the weights of `gguf` or random ones: the time is the same."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if gguf:
        folder, file = os.path.split(os.path.abspath(gguf))
        return LlamaForCausalLM.from_pretrained(folder, gguf_file=file, dtype=dtype, attn_implementation="sdpa")
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype)


def quantize(model, dtype):
    """Puts bitsandbytes' NF4 layers in place of the linear layers of the blocks; the head is tied, and stays."""
    import bitsandbytes as bnb
    import torch

    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, linear in list(part.named_children()):
                if not isinstance(linear, torch.nn.Linear):
                    continue
                layer = bnb.nn.Linear4bit(
                    linear.in_features,
                    linear.out_features,
                    bias=False,
                    compute_dtype=dtype,
                    quant_type="nf4",
                    compress_statistics=True,
                    device="meta",
                )
                layer.weight = bnb.nn.Params4bit(
                    linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
                ).to("cpu")  # quantizes
                assert layer.weight.dtype == torch.uint8
                setattr(part, name, layer)


def measure(configuration, options):
    import torch
    from peft import LoraConfig, get_peft_model

    name, dtype_name = configuration.split("/")
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype_name]
    _, method, shape = name.split("_")
    torch.set_num_threads(options.threads)

    model = language_model(options.gguf, dtype)
    model.config.use_cache = False
    model.requires_grad_(False)
    if method == "qlora":
        quantize(model, dtype)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    model.train()
    adapters = [p for p in model.parameters() if p.requires_grad]
    assert len(adapters) == 2 * len(TARGETS) * 30
    optimizer = torch.optim.AdamW(adapters, lr=1e-4, weight_decay=0.0)

    batch, length = SHAPES[shape]
    ids = torch.randint(0, 49152, (batch, length), generator=torch.Generator().manual_seed(1))
    losses = []

    def step():
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())

    result = measurement.timed(step, options)
    assert len(losses) == 1 or losses[-1] < losses[0], f"the loss did not fall: {losses}"
    return {
        "name": name,
        "dtype": dtype_name,
        "tokens": batch * length,
        "weights": "gguf" if options.gguf else "random",
        "loss_first": round(losses[0], 4),
        "loss_last": round(losses[-1], 4),
        **result,
    }


if __name__ == "__main__":
    parser = measurement.arguments(__doc__)
    parser.add_argument("--gguf", metavar="FILE", help="weights of SmolLM2-135M; random ones without")
    measurement.main(parser.parse_args(), CONFIGURATIONS, measure)

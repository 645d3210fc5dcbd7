"""Makes `dora/`: a DoRA adapter of PEFT on the small llama of the goldens, and the logits that PEFT computes with it.

    python3 make_dora.py GOLDEN/tiny/llama
"""

import json
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

torch.manual_seed(7)
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
config = LoraConfig(r=2, lora_alpha=3, use_dora=True, use_rslora=True, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
model = get_peft_model(base, config)
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.2)
        if "magnitude" in name:
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
folder = pathlib.Path(__file__).parent / "dora"
model.save_pretrained(folder)
(folder / "README.md").unlink(missing_ok=True)
ids = [3, 1, 4, 1, 5, 9, 2, 6]
model.eval()
with torch.no_grad():
    adapted = model(torch.tensor([ids])).logits[0]
    with model.disable_adapter():
        plain = model(torch.tensor([ids])).logits[0]
    merged = model.merge_and_unload()(torch.tensor([ids])).logits[0]
print("adapter changes", (adapted - plain).abs().max().item(), "merge", (merged - adapted).abs().max().item())
(folder / "logits.json").write_text(json.dumps({"ids": ids, "logits": adapted.tolist()}))

"""Number of bytes of a message for each method, measured on real messages of a real model.

The saving is that of a single round: the bytes of both messages of full fine-tuning, divided by the
bytes of both messages of the method.

    python benchmarks/message_bytes.py
"""

from __future__ import annotations

from fl_vitlora.config import FineTuningConfig, ModelConfig
from fl_vitlora.finetuning import methods
from fl_vitlora.flower.wire.byte_counts import model_bytes
from fl_vitlora.models import backbone
from fl_vitlora.state import count

MODELS = ("vit_letters_16", "vit_base_patch16_224")
CLASSES = 10


def main() -> None:
    """Prints a table."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # no server runs here
    print(f"{'model':<22} {'method':<18} {'scalars':>11} {'down (B)':>12} {'up (B)':>12}  saving")
    for model in MODELS:
        full: dict[str, int] = {}
        for method in ("full", "lora+patch_embed", "lora", "head"):
            built = backbone.build(ModelConfig(name=model, weights="random"), CLASSES, 0)
            methods.prepare(built.model, FineTuningConfig(method=method), 0)
            state = methods.export_state(built.model)
            down, up = model_bytes(state)
            full.setdefault(model, down + up)
            print(
                f"{model:<22} {method:<18} {count(state):>11,} {down:>12,} {up:>12,}"
                f"  {full[model] / (down + up):.1f}x"
            )


if __name__ == "__main__":
    main()

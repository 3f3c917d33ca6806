"""Reference of `gpu.py`: plain torch in float32.

It also makes the models and measures what the chip can do.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from gpu_contenders import CLASSES, PAD_ID, Contender, half_dtype
from gpu_inputs import MAX_LENGTH, Sample, Shape
from timing import describe, flop_per_token, matrix_ceiling
from transformers import AutoModelForSequenceClassification, BertConfig

from sentiment_core.runtime import hardware
from sentiment_core.text.batching import pad
from sentiment_core.text.token_lists import TokenLists

VOCABULARY = 30_522
# Random weights of unit gain, attention twice that. With BERT's own 0.02 a row hardly shows what else it attends to,
# so a lost isolation of rows would pass for rounding; measured on two shapes, the ratio of the two is 3 and 38.
ATTENTION_GAIN = 2.0
LOGIT_SPREAD = 0.7  # standard deviation of the logits over rows
CALIBRATION_ROWS = 64  # that the head's scale is chosen on


class Reference(Contender):
    """Plain torch in float32, a batch for each row."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_float32_matmul_precision("highest")  # no TF32

    def machine(self) -> dict:
        """Describe the device and torch's build."""
        facts: dict[str, Any] = {
            "device": hardware.device_name(self.device),
            "device_type": self.device.type,
            "torch_threads": torch.get_num_threads(),
            "half_dtype": hardware.dtype_name(half_dtype(self.device)),
            "torch_cuda": torch.version.cuda,
            "torch_architectures": torch.cuda.get_arch_list(),
        }
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            free, total = torch.cuda.mem_get_info(self.device)
            facts |= {
                "capability": f"{properties.major}.{properties.minor}",
                "multiprocessors": properties.multi_processor_count,
                "memory_gb": total / 2**30,
                "free_memory_gb": free / 2**30,
                "attention_backends": {
                    "flash": torch.backends.cuda.flash_sdp_enabled(),
                    "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
                    "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
                },
            }
        return facts

    def make_model(self, shape: Shape, folder: str) -> dict:
        """Save a model of this shape with random weights, and describe it."""
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.inner,
            max_position_embeddings=MAX_LENGTH,
            pad_token_id=PAD_ID,
            initializer_range=shape.hidden**-0.5,
            num_labels=CLASSES,
        )
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("attention.self.value.weight", "attention.output.dense.weight")):
                    parameter.mul_(ATTENTION_GAIN)
        self.model = model.to(self.device)
        scale_head(self.model, Sample("sentences", CALIBRATION_ROWS).draw(), self.device)
        self.model.save_pretrained(folder)
        return {
            **asdict(shape),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "flop_per_token": flop_per_token(model.bert),
        }

    def ceiling(self, shape: Shape, rows: int | None) -> dict[str, float | str]:
        """Measure the matrix ceiling in the 16-bit type and in float32."""
        rates: dict[str, float | str] = {}
        for dtype in dict.fromkeys((half_dtype(self.device), torch.float32)):
            try:
                rates[hardware.dtype_name(dtype)] = matrix_ceiling(shape.hidden, shape.inner, dtype, self.device, rows)
            except RuntimeError as error:
                rates[hardware.dtype_name(dtype)] = describe(error)
        return rates

    def check(self, lists: TokenLists) -> tuple[np.ndarray, float]:
        """Compute each row alone, and how much rows move that attend to the next ones.

        Returns probabilities (rows, classes) and the mean, over rows, of the largest difference.
        """
        alone = [self._row(lists, row, 1) for row in range(len(lists))]
        shorter = np.flatnonzero(lists.lengths < MAX_LENGTH // 2)
        moved = [np.abs(self._row(lists, row, len(lists)) - alone[row]).max() for row in shorter[:64]]
        return np.stack(alone), float(np.mean(moved))

    def _row(self, lists: TokenLists, row: int, joined_rows: int) -> np.ndarray:
        """Compute one row's probabilities, with the next rows joined to it."""
        start, stop = lists.offsets[row], lists.offsets[min(row + joined_rows, len(lists))]
        ids = lists.ids[start : min(int(stop), int(start) + MAX_LENGTH)].astype(np.int64)[None]
        with torch.inference_mode():
            (inputs,) = hardware.to_device(self.device, ids)
            logits = self.model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits
            return torch.softmax(logits.float(), dim=1)[0].cpu().numpy()


def scale_head(model: Any, lists: TokenLists, device: torch.device) -> None:
    """Shift and scale the last layer so that the rows get different labels.

    A random layer gives all rows the same one.
    """
    ids, mask = hardware.to_device(device, *pad(lists, np.arange(len(lists)), PAD_ID))
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
        scale = LOGIT_SPREAD / logits.std(dim=0).mean()
        model.classifier.weight.mul_(scale)
        model.classifier.bias.copy_((model.classifier.bias - logits.mean(dim=0)) * scale)

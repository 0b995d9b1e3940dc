"""Concept activation vectors: directions at a layer that lead towards concepts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...engine.checks import ArgumentError, ArgumentTypeError
from ...engine.files import about, read, write
from .base import Concept, concepts_to_str


class CAV:
    """The concept activation vectors of a set of concepts at a layer: one direction for each, away from the others.

    Kim, Wattenberg, Gilmer, Cai, Wexler, Viegas, Sayres (ICML 2018), section 3.2. On disk they are safetensors files.

    Args:
        concepts: the concepts; only their numbers and names are saved.
        layer: the layer's name.
        stats: ``"weights"`` [C, D], ``"classes"`` (which row is which concept's, by number), and what else is known of
            the classifier: tensors, arrays, and what JSON can say.
        save_path: a folder.
        model_id: a name for the model.

    >>> import tempfile
    >>> stripes, dots = Concept(0, "stripes"), Concept(1, "dots")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     CAV([stripes, dots], "conv", {"weights": torch.eye(2), "classes": [0, 1]}, folder, "net").save()
    ...     CAV.load(folder, "net", [stripes, dots], "conv").stats["weights"]
    tensor([[1., 0.],
            [0., 1.]])
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        layer: str,
        stats: dict[str, Any] | None = None,
        save_path: str | Path = "./cav/",
        model_id: str = "default_model_id",
    ) -> None:
        self.concepts, self.layer, self.stats = list(concepts), layer, stats
        self.save_path, self.model_id = save_path, model_id

    def directions(self) -> Tensor:
        """The vectors in the order of the concepts [C, D].

        Raises:
            ValueError: a concept has none.
        """
        stats = self.stats or {}
        rows = {int(c): i for i, c in enumerate(stats.get("classes", ()))}
        missing = [c for c in self.concepts if c.id not in rows]
        if missing:
            raise ArgumentError(
                f"the classifier at {self.layer!r} knows nothing of {missing}: its classes are {list(rows)}"
            )
        return torch.as_tensor(stats["weights"]).detach()[[rows[c.id] for c in self.concepts]]

    @staticmethod
    def assemble_save_path(path: str | Path, model_id: str, concepts: Sequence[Concept], layer: str) -> str:
        """The file that holds the vectors of these concepts.

        >>> CAV.assemble_save_path("cavs", "net", [Concept(0, "stripes"), Concept(1, "dots")], "conv")
        'cavs/net/0-1-conv.safetensors'
        """
        return str(Path(path, model_id, f"{concepts_to_str(concepts)}-{layer}.safetensors"))

    def save(self, *, of: str = "") -> None:
        """Writes them to the file that :meth:`assemble_save_path` names.

        Args:
            of: of which model they are, by :func:`robustx.engine.files.digest`.

        Raises:
            TypeError: ``stats`` hold something that is neither a tensor, an array, nor for JSON.
        """
        tensors: dict[str, Tensor] = {}
        words: dict[str, Any] = {}
        for name, value in (self.stats or {}).items():
            if isinstance(value, Tensor | np.ndarray):
                tensors[name] = torch.as_tensor(value)
            else:
                words[name] = value
        try:
            told = json.dumps(words)
        except TypeError as e:
            raise ArgumentTypeError(f"stats must hold tensors, arrays and what JSON can say: {e}") from None
        names = json.dumps([[c.id, c.name] for c in self.concepts])
        file = Path(self.assemble_save_path(self.save_path, self.model_id, self.concepts, self.layer))
        write(file, tensors, {"concepts": names, "layer": self.layer, "stats": told, "of": of})

    @staticmethod
    def create_cav_dir_if_missing(save_path: str | Path, model_id: str) -> None:
        """Makes the folder for a model's vectors."""
        Path(save_path, model_id).mkdir(parents=True, exist_ok=True)

    @staticmethod
    def load(
        cavs_path: str | Path, model_id: str, concepts: Sequence[Concept], layer: str, *, of: str = ""
    ) -> "CAV | None":
        """What was saved; None if there is nothing, or concepts of other names had these numbers.

        Args:
            of: None also if they say that they are of another model than this.
        """
        file = Path(CAV.assemble_save_path(cavs_path, model_id, concepts, layer))
        if not file.exists():
            return None
        words = about(file)
        same = json.loads(words["concepts"]) == [[c.id, c.name] for c in concepts]
        if not same or (of and words["of"] not in ("", of)):
            return None
        return CAV(concepts, words["layer"], {**json.loads(words["stats"]), **read(file)}, cavs_path, model_id)

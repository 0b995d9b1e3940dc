"""TCAV: how much of a model's answer goes along a concept's direction at a layer."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy, deepcopy
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...engine.checks import ArgumentError, ArgumentTypeError
from ...engine.corrections import holm
from ...engine.files import digest
from ...engine.guard import untouched
from ...engine.packing import Tensors, flat
from ...engine.probe import Probe
from ..activations import AV, LayerName, keep, look, named
from ..base import LayerAttribution
from ..gradient import LayerGradientXActivation
from .base import Concept, ConceptInterpreter, concepts_to_str
from .cav import CAV
from .classifier import Classifier, DefaultClassifier
from .significance import TESTS, Significance


def concept_sensitivity(f: Probe, directions: Sequence[Tensor]) -> Tensors:
    """The slope of the score where f stands, along some directions [V, D] at each tensor there: [B, V] each.

    Kim et al. (ICML 2018), eq. 1. [B, T, V] for several scores. Gradients are never held for more than a batch.
    """
    parts: list[list[Tensor]] = [[] for _ in directions]
    for at in f.locals(f.examples, lambda part: (None, f.everyone[part])):
        ends = at.grad.split_with_sizes(at.packing.sizes, -1)
        for found, slope, v in zip(parts, ends, directions, strict=True):
            found.append(slope @ _fitting(v, slope).mT)
    return tuple(torch.cat(found) for found in parts)


def _listed(experimental_sets: Sequence[Sequence[Concept]]) -> list[list[Concept]]:
    if isinstance(experimental_sets, Concept) or any(isinstance(s, Concept) for s in experimental_sets):
        raise ArgumentTypeError("experimental_sets must be sets of concepts, got concepts; one set of them is [[a, b]]")
    return [list(s) for s in experimental_sets]


class TCAV(ConceptInterpreter):
    """Testing with concept activation vectors: for how many inputs would more of a concept raise the score?

    Kim, Wattenberg, Gilmer, Cai, Wexler, Viegas, Sayres (ICML 2018), arXiv 1711.11279. A classifier learns to tell
    activations of a concept's examples from those of others; its weights are the concept's direction. A score that
    rises along this direction is sensitive to the concept.

    Args:
        model: the model.
        layers: a layer or some, by name or themselves.
        model_id: a name for the model, on disk.
        classifier: what tells concepts apart; by default :class:`DefaultClassifier`. :class:`FastCAV` does not search.
        layer_attr_method: what takes the gradient's place: an attribution method at a layer; it is handed the layers.
        attribute_to_layer_input: look at what goes into the layers.
        save_path: a folder for activations and vectors, where concepts are known by number and name. None keeps all in
            memory. Either way they are used again as long as they are of the model's weights.
        classifier_kwargs: for the classifier's ``train_and_eval``.

    >>> from robustx.attribution.concept import FastCAV
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0))
    >>> right = Concept(0, "right", torch.rand(20, 2) + torch.tensor([1.0, 0.0]))
    >>> left = Concept(1, "left", torch.rand(20, 2) - torch.tensor([1.0, 0.0]))
    >>> scores = TCAV(model, "1", classifier=FastCAV()).interpret(torch.randn(8, 2), [[right, left]])
    >>> sorted(scores["0-1"]["1"]), scores["0-1"]["1"]["sign_count"].sum()
    (['magnitude', 'sign_count'], tensor(1.))
    """

    def __init__(
        self,
        model: nn.Module,
        layers: LayerName | Sequence[LayerName],
        model_id: str = "default_model_id",
        classifier: Classifier | None = None,
        layer_attr_method: LayerAttribution | None = None,
        attribute_to_layer_input: bool = False,
        save_path: str | Path | None = None,
        **classifier_kwargs: Any,
    ) -> None:
        super().__init__(model)
        if not model_id:
            raise ArgumentError("model_id must be a name for the model, got ''; leave it out for the default")
        self._modules = named(model, layers)
        self.layers = list(self._modules)
        self.model_id = model_id
        self.concepts: set[Concept] = set()
        self.classifier = classifier if classifier is not None else DefaultClassifier()
        self.classifier_kwargs = classifier_kwargs
        self.layer_attr_method = layer_attr_method
        self.attribute_to_layer_input = attribute_to_layer_input
        self.save_path = save_path
        self.cavs: dict[str, dict[str, CAV]] = {}
        self._held: dict[tuple[Concept, str], list[Tensor]] = {}
        self._of = self._now()

    def generate_all_activations(self) -> None:
        """Looks at the examples of all concepts seen so far, at all layers."""
        for concept in self.concepts:
            self.generate_activation(self.layers, concept)

    def generate_activation(self, layers: str | Sequence[str], concept: Concept) -> None:
        """Looks at a concept's examples at some layers; one pass for all of them."""
        names = [layers] if isinstance(layers, str) else list(layers)
        if self.save_path is not None:
            batches, of = concept.batches(), concept.identifier
            keep(self.save_path, self.model, self.model_id, names, batches, of, self._side)
            return
        modules, found = [self._modules[n] for n in names], []
        with untouched(self.model):  # a loader draws from the global generator even if it does not shuffle
            for inputs in concept.batches():
                found.append(look(self.model, modules, inputs, side=self._side))
        for name, here in zip(names, zip(*found, strict=True), strict=True):
            self._held[concept, name] = [_one(t, name).detach().cpu() for t in here]

    def generate_activations(self, concept_layers: Mapping[Concept, Sequence[str]]) -> None:
        """Looks at the examples of some concepts, at some layers for each."""
        for concept, layers in concept_layers.items():
            self.generate_activation(layers, concept)

    def load_cavs(self, concepts: Sequence[Concept]) -> tuple[list[str], dict[Concept, list[str]]]:
        """Takes up what is known of these concepts told apart.

        Returns:
            The layers at which it has still to be learned, and for each concept those at which its examples have to be
            looked at.
        """
        known = self.cavs.setdefault(concepts_to_str(concepts), {})
        for layer in self.layers:
            if self.save_path is not None and layer not in known:
                cav = CAV.load(self.save_path, self.model_id, concepts, layer, of=self._of)
                known.update({} if cav is None else {layer: cav})
        layers = [v for v in self.layers if v not in known]
        return layers, self._unseen(concepts, layers)

    def compute_cavs(
        self,
        experimental_sets: Sequence[Sequence[Concept]],
        force_train: bool = False,
        processes: int | None = None,
    ) -> dict[str, dict[str, CAV]]:
        """Learns to tell the concepts of each set apart, at each layer: set ("0-1") -> layer -> vectors.

        Args:
            experimental_sets: sets of concepts, such as a concept and random examples.
            force_train: look at the examples and learn anew, whatever is known.
            processes: learn in that many threads, each set with a classifier of its own.

        Raises:
            ValueError: a set has fewer than two concepts, or two concepts have one number.
        """
        sets = _listed(experimental_sets)
        for s in sets:
            if len(s) < 2:
                raise ArgumentError(f"experimental_sets must have two concepts or more each, to tell apart; got {s}")
        everyone = self.concepts.union(*sets)
        if len({c.id for c in everyone}) < len(everyone):
            known = sorted(everyone, key=lambda c: c.id)
            raise ArgumentError(
                f"concepts must have numbers of their own, got {known}; use each again as the same object"
            )
        self.concepts = everyone
        now = self._now()
        if force_train or now != self._of:  # the model has learned since
            self._held.clear()
            self.cavs.clear()
        self._of = now
        to_learn: list[tuple[list[Concept], str]] = []
        for key, s in {concepts_to_str(s): s for s in sets}.items():
            if force_train:
                self.cavs[key] = {}
                layers, unseen = self.layers, self._unseen(s, self.layers)
            else:
                layers, unseen = self.load_cavs(s)
            self.generate_activations(unseen)
            to_learn += [(s, layer) for layer in layers]
        self._learn(to_learn, processes)
        return self.cavs

    def interpret(
        self,
        inputs: Any,
        experimental_sets: Sequence[Sequence[Concept]],
        target: Any = None,
        additional_forward_args: Any = None,
        processes: int | None = None,
        **kwargs: Any,
    ) -> dict[str, dict[str, dict[str, Tensor]]]:
        """How the score goes along concepts: set ("0-1") -> layer -> ``"sign_count"`` and ``"magnitude"``.

        Both are [C], in the order of the set's concepts ([T, C] for several scores): the share of the inputs whose
        score rises along the concept's direction, and the mean of these slopes. Directions are as long as the
        classifier makes them, and so are slopes.

        Args:
            inputs, target, additional_forward_args: see :class:`robustx.attribution.base.Attribution`.
            experimental_sets, processes: see :meth:`compute_cavs`.
            kwargs: ``additional_forward_kwargs`` and ``internal_batch_size``; or those of ``layer_attr_method``.

        Raises:
            ValueError: ``attribute_to_layer_input`` is given here.
        """
        if "attribute_to_layer_input" in kwargs:
            raise ArgumentError("attribute_to_layer_input is an argument of TCAV itself: it holds for the vectors too")
        sets = _listed(experimental_sets)
        self.compute_cavs(sets, processes=processes)
        scores: dict[str, dict[str, dict[str, Tensor]]] = {concepts_to_str(s): {} for s in sets}
        cavs = [self.cavs[key] for key in scores]
        directions = [[known[layer].directions() for known in cavs] for layer in self.layers]
        with untouched(self.model):
            slopes = self._slopes(inputs, [torch.cat(v) for v in directions], target, additional_forward_args, kwargs)
        for layer, slope, some in zip(self.layers, slopes, directions, strict=True):
            for key, s in zip(scores, slope.split([len(v) for v in some], -1), strict=True):
                scores[key][layer] = {"sign_count": (s > 0).to(s).mean(0), "magnitude": s.mean(0)}
        return scores

    def significance(
        self,
        inputs: Any,
        concepts: Concept | Sequence[Concept],
        random_concepts: Sequence[Concept],
        target: Any = None,
        additional_forward_args: Any = None,
        processes: int | None = None,
        *,
        test: str = "t",
        score: str = "magnitude",
        **kwargs: Any,
    ) -> dict[str, dict[str, Significance]]:
        """Whether concepts score otherwise than random ones do: concept's name -> layer -> :class:`Significance`.

        Any set of examples has a direction, so a concept counts only if its scores, told apart from each of R random
        concepts, are not those of random concepts told apart from one another (Kim et al., ICML 2018, section 3.5).

        Args:
            inputs, target, additional_forward_args, processes, kwargs: see :meth:`interpret`.
            concepts: one, or some.
            random_concepts: R of them, drawn at random, of as many examples as the concepts have. Three at least; for
                ``"permutation"`` so many that 1 / (R + 1) is little.
            test: ``"t"``: is the concept an outlier among the random ones? ``"permutation"``: the same by ranks, exact.
                Both ask for R (R + 1) / 2 classifiers at each layer. ``"kim"``: the paper's, for 2 R; it finds random
                concepts too often.
            score: ``"magnitude"``, the mean slope along directions of length one; or ``"sign_count"``, the paper's,
                which often is 0 or 1 for random concepts as well, and then cannot tell.

        Raises:
            ValueError: there are fewer than three random concepts, no such test or score, two concepts of one name.
        """
        asked, random = [concepts] if isinstance(concepts, Concept) else list(concepts), list(random_concepts)
        if len({c.name for c in asked}) < len(asked):
            raise ArgumentError(f"concepts must have names of their own, got {asked}")
        if len(random) < 3:
            raise ArgumentError(f"random_concepts must be three at least, better twenty or more, got {len(random)}")
        if test not in TESTS or score not in ("sign_count", "magnitude"):
            raise ArgumentError(
                f"test must be one of {', '.join(TESTS)} and score sign_count or magnitude, got {test!r} and {score!r}"
            )
        among = zip([*random[1:], random[0]], random, strict=True) if test == "kim" else combinations(random, 2)
        every = list(among)
        pairs = [(c, r) for c in asked for r in random] + every
        found = self.interpret(inputs, pairs, target, additional_forward_args, processes, **kwargs)

        def of(layer: str) -> dict[tuple[Concept, Concept], Tensor]:
            """(concept, what it is told apart from) -> score."""
            told = {}
            for a, b in pairs:
                key = concepts_to_str((a, b))
                both = found[key][layer][score].cpu()
                if both.ndim > 1:
                    raise ArgumentError(f"significance is that of one score, target asks for {len(both)}")
                lengths = self.cavs[key][layer].directions().cpu().norm(dim=1)
                told[a, b], told[b, a] = both / lengths if score == "magnitude" else both
            return told

        results: list[tuple[str, str, Tensor, Tensor, float]] = []
        for layer in self.layers:
            told = of(layer)
            for c in asked:
                scores = torch.stack([told[c, r] for r in random])
                if test == "kim":
                    null = torch.stack([told[pair] for pair in every])
                else:
                    others = [[o for o in (c, *random) if o is not r] for r in random]
                    rows = [[told[r, o] for o in some] for r, some in zip(random, others, strict=True)]
                    null = torch.stack([torch.stack(row).mean() for row in rows])
                results.append((c.name, layer, scores, null, TESTS[test](scores, null)))
        tested: dict[str, dict[str, Significance]] = {c.name: {} for c in asked}
        for (name, layer, scores, null, p), adjusted in zip(results, holm([p for *_, p in results]), strict=True):
            tested[name][layer] = Significance(scores, null, p, adjusted)
        return tested

    @property
    def _side(self) -> str:
        return "input" if self.attribute_to_layer_input else "output"

    def _now(self) -> str:
        """Of what vectors are that are learned now."""
        return digest(self.model.state_dict(), self._side)

    def _unseen(self, concepts: Sequence[Concept], layers: Sequence[str]) -> dict[Concept, list[str]]:
        """At which of the layers a concept's examples were not looked at; what is on disk tells for itself."""
        unseen = {c: [v for v in layers if (c, v) not in self._held] for c in concepts}
        return {c: some for c, some in unseen.items() if some}

    def _learn(self, to_learn: Sequence[tuple[list[Concept], str]], processes: int | None) -> None:
        own = bool(processes and processes > 1)

        def learn(concepts: list[Concept], layer: str) -> CAV:
            classifier = deepcopy(self.classifier) if own else self.classifier
            told = classifier.train_and_eval(self._batches(concepts, layer), **self.classifier_kwargs) or {}
            stats = {"weights": classifier.weights(), "classes": [int(c) for c in classifier.classes()], **told}
            folder = "./cav/" if self.save_path is None else self.save_path
            cav = CAV(concepts, layer, stats, folder, self.model_id)
            if self.save_path is not None:
                cav.save(of=self._of)
            return cav

        if own:
            with ThreadPoolExecutor(processes) as pool:
                found = list(pool.map(learn, *zip(*to_learn, strict=True))) if to_learn else []
        else:
            found = [learn(*pair) for pair in to_learn]
        for (concepts, layer), cav in zip(to_learn, found, strict=True):
            self.cavs[concepts_to_str(concepts)][layer] = cav

    def _batches(self, concepts: Sequence[Concept], layer: str) -> DataLoader[Any]:
        """(activations [N, D], concept's number [N]), batch by batch; what is on disk is read when its turn comes."""

        def batches(c: Concept) -> Sequence[Any]:
            if self.save_path is None:
                return self._held[c, layer]
            return AV.load(self.save_path, self.model_id, c.identifier, layer)  # type: ignore[return-value]  # it is read like one

        parts = [(batches(c), c.id) for c in concepts]
        return DataLoader(_Labelled(parts, layer), batch_size=None, generator=torch.Generator())

    def _slopes(
        self, inputs: Any, directions: Sequence[Tensor], target: Any, args: Any, kwargs: dict[str, Any]
    ) -> Tensors:
        """Of the score along directions [V, D] at each layer: [B, V] each."""
        modules = list(self._modules.values())
        if self.layer_attr_method is not None:
            found = []
            for name, module, v in zip(self.layers, modules, directions, strict=True):
                method: Any = copy(self.layer_attr_method)
                method.layer = module
                shown = method.attribute(
                    inputs,
                    target=target,
                    additional_forward_args=args,
                    attribute_to_layer_input=self.attribute_to_layer_input,
                    **kwargs,
                )
                slope = flat(_one(shown, name).detach())
                found.append(slope @ _fitting(v, slope).mT)
            return tuple(found)
        unknown = set(kwargs) - {"additional_forward_kwargs", "internal_batch_size"}
        if unknown:
            raise ArgumentTypeError(f"unknown arguments {', '.join(sorted(unknown))}; they go with a layer_attr_method")
        method = LayerGradientXActivation(self.model, modules)
        site = method._site(self.attribute_to_layer_input)
        more, limit = kwargs.get("additional_forward_kwargs"), kwargs.get("internal_batch_size")
        return concept_sensitivity(method._bind(inputs, target, args, more, limit, at=site)[1], directions)


class _Labelled(Dataset[Any]):
    """Batches of several concepts' activations, each with the number of its concept."""

    def __init__(self, parts: Sequence[tuple[Sequence[Any], int]], layer: str) -> None:
        self.items = [(batches, i, number) for batches, number in parts for i in range(len(batches))]
        self.layer = layer

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        batches, i, number = self.items[k]
        here = flat(_one(batches[i], self.layer))
        return here.to(torch.promote_types(here.dtype, torch.float32)), torch.full((len(here),), number)

    def __len__(self) -> int:
        return len(self.items)


def _one(here: Any, layer: str) -> Tensor:
    here = here[0] if isinstance(here, tuple | list) and len(here) == 1 else here
    if not isinstance(here, Tensor):
        raise ArgumentTypeError(f"the layer {layer!r} has several tensors there; choose one that has one")
    return here


def _fitting(v: Tensor, slope: Tensor) -> Tensor:
    if v.shape[-1] != slope.shape[-1]:
        raise ArgumentError(
            f"concepts' directions have {v.shape[-1]} elements, the layer {slope.shape[-1]}; were their examples of "
            "another size than the inputs?"
        )
    return v.to(slope)

"""Names of models and data outside the zoo: how they are read, and how what they name is fetched.

An address is ``target[@weights][?key=value&...]``. The target is ``package.module:name``, ``torchvision:name`` or one
of the schemes' names, such as ``hf:owner/name``; the options go to what it names as keyword arguments.
"""

import ast
import contextlib
import copy
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from .checkpoints import load_weights

TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
SCHEMES = ("timm", "hf", "robustbench", "folder", "file")  # before the colon: what follows is no name in Python


@dataclass(frozen=True)
class Address:
    """A name taken apart; `text` is the name as it was given."""

    text: str
    module: str
    name: str
    weights: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def parse(text: str) -> Address:
    """Take ``module:name[@weights][?key=value&...]`` apart. Raises ValueError for another form.

    Values are Python literals (``size=16``, ``flag=True``, ``shape=(3,8,8)``); what is none stays a string.

    >>> parse("timm:resnet18@none?num_classes=7")
    Address(text='timm:resnet18@none?num_classes=7', module='timm', name='resnet18', weights='none',
            options={'num_classes': 7})
    """
    head, asked, tail = text.partition("?")
    if is_file(text):
        head = f"file:{head}"
    module, _, rest = head.partition(":")
    name, at, weights = (rest, "", "") if module in ("file", "folder") else rest.partition("@")  # a path may hold an @
    pairs = [item.partition("=") for item in tail.split("&")] if asked else []
    named = bool(name) if module in SCHEMES else TARGET.fullmatch(f"{module}:{name}")
    if not named or (at and not weights) or not all(k and eq for k, eq, _ in pairs):
        form = f"{module}:name" if module in SCHEMES else "package.module:name"
        raise ValueError(f"a name must read '{form}[@weights][?key=value&...]', got {text!r}")
    return Address(text, module, name, weights or None, {key: _literal(value) for key, _, value in pairs})


def is_file(text: str) -> bool:
    """Whether a name is the path of a file of samples, with or without options."""
    head = text.partition("?")[0]
    return ":" not in head and head.endswith((".npz", ".safetensors", ".csv"))


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def near(name: str, known: Iterable[str]) -> str:
    """The known names most like `name`, in brackets for an error message, or ""."""
    matches = difflib.get_close_matches(name, list(known), n=4, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, matches))}?)" if matches else ""


def find(address: Address) -> Any:
    """The object at ``package.module:name``; a dotted name leads into attributes.

    Raises ModuleNotFoundError where there is no such module and ValueError where the module has no such name;
    an error inside the module passes through.
    """
    try:
        found = importlib.import_module(address.module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{address.module}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise ModuleNotFoundError(
            f"{address.text!r} needs the module {error.name!r}, which is neither installed nor in the "
            "working directory; install it, or run where it lies",
            name=error.name,
        ) from None
    for part in address.name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{address.module!r} has no {address.name!r}{near(part, dir(found))}")
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def working_directory() -> Iterator[None]:
    """Modules in the working directory can be imported too, after the installed ones."""
    before = sys.path[:]
    sys.path.append(str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def call(function: Callable[..., Any], address: Address, **extra: Any) -> Any:
    """What the function returns for the address's options; ValueError where they do not fit."""
    given = {**extra, **address.options}
    try:
        inspect.signature(function).bind(**given)
    except TypeError as error:
        raise ValueError(
            f"{address.text!r} cannot be called with {', '.join(given) or 'no arguments'}: {error}; "
            "give its arguments as '?key=value&...'"
        ) from None
    except ValueError:
        pass  # a builtin that does not tell its signature
    return function(**given)


def parameters(function: Callable[..., Any]) -> frozenset[str]:
    """The names of a callable's arguments; none where it does not tell."""
    try:
        return frozenset(inspect.signature(function).parameters)
    except ValueError:
        return frozenset()


def user_model(address: Address) -> nn.Module:
    """The model at ``package.module:name[@file.safetensors]``: a module, or anything that returns one."""
    with working_directory():
        net = _user_model(address)
    return load_weights(net, address.weights) if address.weights else net


def _user_model(address: Address) -> nn.Module:
    found = find(address)
    if isinstance(found, nn.Module):
        if address.options:
            raise ValueError(f"{address.text!r} is a model already and takes no options")
        net: Any = copy.deepcopy(found)  # weights, mode and device of the user's own stay as they are
    elif callable(found):
        net = call(found, address)
    else:
        net = found
    if not isinstance(net, nn.Module):
        raise TypeError(f"{address.text!r} must be or return a torch.nn.Module, got {type(net).__name__}")
    return net

"""Names of models and data outside the zoo: how they are read, and how what they name is fetched.

An address is ``target[@weights][?key=value&...]``. The target is ``package.module:name`` or
``torchvision:name``; the options go to what it names as keyword arguments.
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

TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


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
    """
    head, asked, tail = text.partition("?")
    target, at, weights = head.partition("@")
    module, _, name = target.partition(":")
    pairs = [item.partition("=") for item in tail.split("&")] if asked else []
    if not TARGET.fullmatch(target) or (at and not weights) or not all(k and eq for k, eq, _ in pairs):
        raise ValueError(f"a name must read 'package.module:name[@weights][?key=value&...]', got {text!r}")
    return Address(text, module, name, weights or None, {key: _literal(value) for key, _, value in pairs})


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


def load_weights(net: nn.Module, file: str | Path) -> nn.Module:
    """The same model with the weights of a safetensors file, which is never unpickled.

    Raises FileNotFoundError, and ValueError for another format or for weights that do not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    path = _weight_file(file)
    try:
        load_model(net, path)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a whole safetensors file ({error}); save it anew") from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the weights in {str(path)!r} do not fit {type(net).__name__}: {reason}") from None
    return net


def read_metadata(file: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(_weight_file(file), framework="pt") as opened:
        return dict(sorted((opened.metadata() or {}).items()))  # stored in any order


def _weight_file(file: str | Path) -> Path:
    path = Path(file).expanduser()
    if path.suffix != ".safetensors":
        raise ValueError(
            f"weights must be a .safetensors file, got {str(file)!r}: a pickled checkpoint can run code when "
            "it is loaded; convert one you trust with safetensors.torch.save_model(model, file)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {str(path)!r}; paths start at {str(Path.cwd())!r}")
    return path

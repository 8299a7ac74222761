"""The guard: NumPy behind CuPy's rules and stricter, so that what fails on a GPU fails without one.

`xp` is a namespace that works like `cupy` and computes with NumPy. What it refuses:

* a NumPy function or `numpy.asarray` on a guard array, and a NumPy array or a list beside a guard
  array or as its index (TypeError); only `asarray` and `array` take data over from the host;
* names that are not in the lists below, which hold a part of what CuPy has (AttributeError), and
  the keywords `initial=`, `where=`, `subok=`, `like=` that CuPy's functions lack (TypeError);
* arrays of two floating dtypes in one operation, 0-d arrays and NumPy scalars included, and
  whatever would silently widen a floating dtype (TypeError). Python scalars fit any.

What it counts, in `counters`: synchronizations, that is every place where a GPU would have to
finish before the program can go on; and arrays newly allocated that are not small.

`empty` holds NaN (integers: their least value), so that reading what was not written shows.

What it does not mimic: CuPy reads out-of-range indices modulo the size, without an error; the guard
raises NumPy's IndexError.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy

from xpcap.backend import Backend


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CREATION = _names(
    "arange empty empty_like eye full full_like linspace ones ones_like zeros zeros_like"
)
UFUNCS = _names(
    "abs absolute add arctan2 bitwise_and bitwise_or ceil cos divide equal exp expm1 floor"
    " floor_divide greater greater_equal hypot invert isfinite isinf isnan less less_equal log"
    " log1p log2 logaddexp logical_and logical_not logical_or logical_xor maximum minimum multiply"
    " negative not_equal power reciprocal remainder rint sign sin sqrt square subtract tanh"
    " true_divide trunc"
)
FUNCTIONS = _names(
    "all any argmax argmin argpartition argsort ascontiguousarray broadcast_to clip concatenate"
    " copyto cumsum diff dot einsum expand_dims flip hstack matmul max mean min moveaxis outer pad"
    " prod ravel repeat reshape roll round searchsorted sort split squeeze stack std sum swapaxes"
    " take take_along_axis tensordot tile transpose tril triu unravel_index var vstack where"
)
SYNCHRONIZING = _names("argwhere bincount flatnonzero nonzero unique")
CONSTANTS = _names(
    "bool_ e float16 float32 float64 inf int16 int32 int64 int8 nan newaxis pi uint16 uint32 uint64"
    " uint8"
)
ATTRIBUTES = _names("dtype flags itemsize nbytes ndim shape size strides")
METHODS = _names(
    "all any argmax argmin argpartition argsort astype clip copy cumsum dot fill flatten max mean"
    " min prod ravel repeat reshape round sort squeeze std sum swapaxes take transpose var"
)
REFUSED_KEYWORDS = frozenset({"initial", "like", "subok", "where"})


@dataclass
class Counters:
    """What happened since the last `reset`; `large_bytes` is where an array begins to be large."""

    synchronizations: int = 0
    large_arrays: int = 0
    large_bytes: int = 65536

    def reset(self, large_bytes: int = 65536) -> None:
        self.synchronizations = self.large_arrays = 0
        self.large_bytes = large_bytes


counters = Counters()


class GuardArray:
    """An array of the guard; its values are a NumPy array that nobody else sees."""

    __slots__ = ("_values", "base")
    __hash__ = None  # type: ignore[assignment]
    __array_ufunc__ = None

    def __init__(self, values: numpy.ndarray, base: GuardArray | None = None) -> None:
        self._values = values
        self.base = base

    def __array_namespace__(self) -> GuardNamespace:
        return xp

    def __array__(self, *args: Any, **kwargs: Any) -> numpy.ndarray:
        raise TypeError("a guard array does not become a NumPy array by itself; use xp.asnumpy")

    def __array_function__(self, *args: Any) -> Any:
        raise TypeError("a NumPy function was called on a guard array; use xp's")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"guard arrays have no '{name}'")

    @property
    def T(self) -> GuardArray:
        return self.transpose()

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: Any) -> GuardArray:
        plain = _index(key)
        if any(
            isinstance(part, numpy.ndarray) and part.dtype.kind == "b" for part in _parts(plain)
        ):
            counters.synchronizations += 1  # the shape depends on the values
        return _wrap(self._values[plain], [self])

    def __setitem__(self, key: Any, value: Any) -> None:
        plain = _index(key)
        if isinstance(value, (list, tuple)):
            raise TypeError("a guard array takes a guard array or a scalar, not a sequence")
        typed: list[Any] = [self]
        new = _plain(value, typed)
        _floating(typed)
        self._values[plain] = new

    def __iter__(self) -> Iterator[GuardArray]:
        counters.synchronizations += 1
        return iter([_wrap(row, [self]) for row in self._values])

    def __repr__(self) -> str:
        counters.synchronizations += 1
        return f"guard {self._values!r}"

    def item(self, *args: int) -> Any:
        counters.synchronizations += 1
        return self._values.item(*args)

    def tolist(self) -> Any:
        counters.synchronizations += 1
        return self._values.tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __index__(self) -> int:
        return operator.index(self.item())


BINARY = _names("add sub mul truediv floordiv mod pow matmul and or xor lshift rshift")
COMPARISONS = _names("eq ne lt le gt ge")
UNARY = _names("neg pos abs invert")


def _operator(name: str, reflected: bool = False) -> Callable[..., Any]:
    operate = getattr(operator, f"__{name}__")

    def method(self: GuardArray, *others: Any) -> Any:
        operands = (*others, self) if reflected else (self, *others)
        return _elementwise(operate, operands, {})

    return method


def _method(name: str) -> Callable[..., Any]:
    function = getattr(numpy.ndarray, name)

    def method(self: GuardArray, *args: Any, **kwargs: Any) -> Any:
        explicit = name == "astype" or kwargs.get("dtype") is not None
        return _call(function, (self, *args), kwargs, explicit)

    return method


for _name in ATTRIBUTES:
    setattr(GuardArray, _name, property(operator.attrgetter(f"_values.{_name}")))
for _name in METHODS:
    setattr(GuardArray, _name, _method(_name))
for _name in BINARY | COMPARISONS | UNARY:
    setattr(GuardArray, f"__{_name}__", _operator(_name))
for _name in BINARY:
    setattr(GuardArray, f"__r{_name}__", _operator(_name, reflected=True))
    setattr(GuardArray, f"__i{_name}__", _operator(f"i{_name}"))


_UNTYPED = frozenset({bool, int, float, slice, str, type, type(None), type(Ellipsis)})


def _plain(value: Any, typed: list[Any]) -> Any:
    """Take the values out of guard arrays, in sequences too; refuse NumPy's arrays.

    What has a dtype, guard arrays and NumPy scalars, is added to `typed`.
    """
    if isinstance(value, GuardArray):
        typed.append(value)
        return value._values
    if type(value) in _UNTYPED:  # nothing else is to be asked of most arguments
        return value
    if isinstance(value, (list, tuple)):
        return type(value)([_plain(part, typed) for part in value])
    if isinstance(value, numpy.ndarray):
        raise TypeError("a NumPy array where a guard array is expected; use xp.asarray")
    if isinstance(value, numpy.generic):
        typed.append(value)
    return value


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _index(key: Any) -> Any:
    if any(isinstance(part, (list, tuple, numpy.ndarray)) for part in _parts(key)):
        raise TypeError("a host array or a list as an index of a guard array; use xp.asarray")
    return _plain(key, [])


def _floating(typed: list[Any]) -> numpy.dtype | None:
    """Return the floating dtype that arrays and NumPy scalars share, or None if there is none."""
    found: numpy.dtype | None = None
    for value in typed:
        dtype = value.dtype
        if dtype.kind != "f" or (found is not None and dtype == found):
            continue
        if found is not None:
            raise TypeError(f"floating dtypes mixed in one operation: {found} and {dtype}")
        found = dtype
    return found


def _wrap(result: Any, typed: list[Any]) -> Any:
    if isinstance(result, (list, tuple)):
        return type(result)(_wrap(part, typed) for part in result)
    if not isinstance(result, (numpy.ndarray, numpy.generic)):
        return result
    values = numpy.asarray(result)
    for source in typed:
        if not isinstance(source, GuardArray):
            continue
        if values is source._values:
            return source
        if values.base is not None and numpy.may_share_memory(values, source._values):
            return GuardArray(values, source if source.base is None else source.base)
    counters.large_arrays += values.nbytes >= counters.large_bytes
    return GuardArray(values)


def _call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], explicit: bool
) -> Any:
    """Call a NumPy function under the guard's rules; `explicit` lets it change a floating dtype."""
    if kwargs and (refused := REFUSED_KEYWORDS.intersection(kwargs)):
        raise TypeError(f"CuPy's functions have no {', '.join(refused)}")
    typed: list[Any] = []
    plain = _plain(args, typed)
    options = {name: _plain(value, typed) for name, value in kwargs.items()}
    floating = _floating(typed)
    result = function(*plain, **options)
    if floating is not None and not explicit:
        for part in result if isinstance(result, (list, tuple)) else [result]:
            dtype = getattr(part, "dtype", floating)
            if dtype.kind == "f" and dtype != floating:
                raise TypeError(f"{floating} silently became {dtype}")
    return _wrap(result, typed)


def _elementwise(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    for operand in args:
        if isinstance(operand, (list, tuple)):
            raise TypeError("a sequence beside a guard array; use xp.asarray")
    return _call(function, args, kwargs, explicit=kwargs.get("dtype") is not None)


def _holds_guard_array(values: Any) -> bool:
    return any(
        isinstance(v, GuardArray) or (isinstance(v, (list, tuple)) and _holds_guard_array(v))
        for v in values
    )


class GuardNamespace:
    """The guard's `xp`."""

    __name__ = "guard"
    ndarray = GuardArray

    def __getattr__(self, name: str) -> Any:
        """Return what NumPy has under a name, as the guard lets it be used; kept from then on."""
        found = self.__dict__[name] = self._guarded(name)
        return found

    def _guarded(self, name: str) -> Any:
        if name in CONSTANTS:
            return getattr(numpy, name)
        if name not in CREATION | UFUNCS | FUNCTIONS | SYNCHRONIZING:
            raise AttributeError(f"the guard does not know '{name}', or CuPy has no such name")
        function = getattr(numpy, name)
        elementwise = name in UFUNCS or name in ("where", "clip")

        def call(*args: Any, **kwargs: Any) -> Any:
            if name not in CREATION and not _holds_guard_array([*args, *kwargs.values()]):
                raise TypeError(f"guard.{name} was called without a guard array")
            if name in SYNCHRONIZING or (name == "where" and len(args) == 1):
                counters.synchronizations += 1
            if elementwise:
                return _elementwise(function, args, kwargs)
            explicit = name in CREATION or kwargs.get("dtype") is not None
            result = _call(function, args, kwargs, explicit)
            if name in ("empty", "empty_like"):
                _spoil(result._values)
            return result

        return call

    def asarray(self, values: Any, dtype: Any = None) -> GuardArray:
        if isinstance(values, GuardArray):
            return values if dtype in (None, values.dtype) else values.astype(dtype)
        return self.array(values, dtype)

    def array(self, values: Any, dtype: Any = None) -> GuardArray:
        if isinstance(values, GuardArray):
            return values.astype(values.dtype if dtype is None else dtype)
        return _wrap(numpy.array(values, dtype=dtype), [])

    def asnumpy(self, array: GuardArray) -> numpy.ndarray:
        if not isinstance(array, GuardArray):
            raise TypeError(f"asnumpy takes a guard array, got {type(array).__name__}")
        counters.synchronizations += 1
        return array._values.copy()


def _spoil(values: numpy.ndarray) -> None:
    if values.dtype.kind == "f":
        values.fill(numpy.nan)
    elif values.dtype.kind in "iu":
        values.fill(numpy.iinfo(values.dtype).min)


xp = GuardNamespace()


class _Guard(Backend):
    def __reduce__(self) -> tuple[Any, ...]:
        return open_guard, ()


def open_guard() -> Backend:
    """Return the guard as a backend."""
    return _Guard("guard", xp)

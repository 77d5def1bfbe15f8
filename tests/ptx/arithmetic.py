"""What instructions compute: from arrays of the lanes' operands to an array of results."""

from collections.abc import Callable

import numpy as np
from memory import Fault
from program import TYPES

Get = Callable[[int, type[np.generic]], np.ndarray]  # an operand by its index, as an array of a type

_TWICE = {np.int16: np.int32, np.uint16: np.uint32, np.int32: np.int64, np.uint32: np.uint64}
_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal
}  # fmt: skip
_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
_BINARY = {**_LOGIC, "add": np.add, "sub": np.subtract}
_UNARY = {"not": np.invert, "neg": np.negative, "abs": np.abs}


def compute(parts: list[str], get: Get, operands: int) -> np.ndarray:
    """Return the result of an instruction that only computes.

    Args:
        parts: Its opcode at the dots.
        get: Gives its operands; 0 is the destination.
        operands: How many it has.

    Raises:
        Fault: If it is none that is known here.
    """
    if parts[-1] == "bf16":
        if parts[0] != "cvt":
            raise Fault(f"{'.'.join(parts)} is not known to the executor")
        value = (get(1, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        return _convert(value, TYPES[parts[-2]], toward_zero=False)
    kind, of = parts[0], TYPES[parts[-1]]
    if kind in _UNARY:
        return _UNARY[kind](get(1, of))
    if kind in _BINARY:
        return _BINARY[kind](get(1, of), get(2, of))
    if kind in ("min", "max"):
        if issubclass(of, np.floating):  # of a number and NaN, the number
            return (np.fmin if kind == "min" else np.fmax)(get(1, of), get(2, of))
        return (np.minimum if kind == "min" else np.maximum)(get(1, of), get(2, of))
    match kind:
        case "mov":
            return get(1, of)
        case "cvt":
            return _convert(get(1, of), TYPES[parts[-2]], "rzi" in parts)
        case "setp":
            return _set_predicate(parts, get, of, operands)
        case "selp":
            return np.where(get(3, np.bool_), get(1, of), get(2, of))
        case "mul" if "hi" in parts:
            product = get(1, of).astype(_TWICE[of]) * get(2, of).astype(_TWICE[of])
            return (product >> (8 * np.dtype(of).itemsize)).astype(of)
        case "mul" | "mad":
            result = _TWICE[of] if "wide" in parts else of
            product = get(1, of).astype(result) * get(2, of).astype(result)
            return product + get(3, result) if kind == "mad" else product
        case "fma":
            a, b, c = (get(index, of).astype(np.longdouble) for index in (1, 2, 3))
            return (a * b + c).astype(of)
        case "div" | "rem":
            return _divide(kind, get(1, of), get(2, of))
        case "shl" | "shr":
            return _shift(kind, get(1, of), get(2, np.uint32))
        case "bfe":
            low, size = get(2, np.uint32).astype(of), get(3, np.uint32).astype(of)
            one = np.ones((), of)
            return (get(1, of) >> low) & ((one << size) - one)
        case "prmt":
            return _permute_bytes(get(1, of), get(2, of), get(3, of))
        case "popc":
            return np.bitwise_count(get(1, of)).astype(np.uint32)
    raise Fault(f"{'.'.join(parts)} is not known to the executor")


def _set_predicate(parts: list[str], get: Get, of: type[np.generic], operands: int) -> np.ndarray:
    a, b, name = get(1, of), get(2, of), parts[1]
    is_unordered = np.isnan(a) | np.isnan(b) if issubclass(of, np.floating) else np.zeros(a.shape, np.bool_)
    if name in ("nan", "num"):
        result = is_unordered if name == "nan" else ~is_unordered
    elif len(name) == 3:  # ltu: less, or not comparable
        result = _COMPARE[name[:2]](a, b) | is_unordered
    else:
        result = _COMPARE[name](a, b) & ~is_unordered
    return _LOGIC[parts[2]](result, get(3, np.bool_)) if operands > 3 else result


def _divide(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if np.issubdtype(a.dtype, np.floating):
        return a / b
    b = np.where(b == 0, np.ones((), b.dtype), b)  # whose result is not defined
    rest = np.fmod(a, b)  # has the sign of a, as in PTX
    return rest if kind == "rem" else (a - rest) // b


def _shift(kind: str, a: np.ndarray, by: np.ndarray) -> np.ndarray:
    bits = a.dtype.itemsize * 8
    held = np.minimum(by, bits - 1).astype(a.dtype)
    if kind == "shr" and np.issubdtype(a.dtype, np.signedinteger):
        return a >> held
    return np.where(by >= bits, np.zeros((), a.dtype), a << held if kind == "shl" else a >> held)


def _permute_bytes(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    pool = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros(a.shape, np.uint32)
    for index in range(4):
        choice = selector >> np.uint32(4 * index) & np.uint32(15)
        byte = (pool >> ((choice & np.uint32(7)) * np.uint32(8)).astype(np.uint64) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        result |= np.where(choice & np.uint32(8), sign, byte) << np.uint32(8 * index)
    return result


def _convert(value: np.ndarray, to: type[np.generic], toward_zero: bool) -> np.ndarray:
    is_float = np.issubdtype(value.dtype, np.floating)
    if not is_float or issubclass(to, np.floating):
        return value.astype(to)
    info = np.iinfo(to)
    rounded = np.trunc(value) if toward_zero else np.rint(value)
    is_nan = np.isnan(value)
    held = np.where(is_nan, 0, rounded).astype(np.longdouble).clip(info.min, info.max).astype(to)
    nan = 0 if value.dtype != np.float64 and info.bits < 64 else (info.min or 1 << (info.bits - 1))
    return np.where(is_nan, np.array(nan, to), held)

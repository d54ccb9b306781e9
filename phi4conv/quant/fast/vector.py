"""Sixteen float32 or int32 lanes as a value that compiled code computes with.

Inside compiled functions (see compiler.py) `F32x16` and `I32x16` behave as numbers: + - * / & | << >>, the
comparisons and unary minus work lane by lane (>> shifts in zeros), a scalar on either side stands for
sixteen of it, and a comparison gives a `Mask16`. LLVM lowers them to whatever vectors the machine has (one
register with AVX-512, two with AVX2, four with SSE2 or NEON), always one IEEE operation with one rounding
each: no fast-math flag is ever set, so that nothing is reassociated or fused.

Outside compiled code the functions of this module cannot be called.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 16

# What annotations of compiled functions say; to the type checker lanes are opaque.
F32x16: TypeAlias = Any
I32x16: TypeAlias = Any
Mask16: TypeAlias = Any

FLOAT = ir.FloatType()
INT = ir.IntType(32)
BIT = ir.IntType(1)
BYTE = ir.IntType(8)
INDEX = ir.IntType(64)


class LanesType(types.Type):  # type: ignore[misc]  # numba is untyped
    """Numba's type of sixteen lanes of one element type."""

    def __init__(self, name: str, element: ir.Type) -> None:
        self.element = element
        self.vector = ir.VectorType(element, LANES)
        super().__init__(name=name)


FLOATS = LanesType("F32x16", FLOAT)
INTS = LanesType("I32x16", INT)
MASK = LanesType("Mask16", BIT)


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]  # numba is untyped
    """Lanes are kept as an LLVM vector everywhere."""

    def __init__(self, dmm: Any, fe_type: LanesType) -> None:
        super().__init__(dmm, fe_type, fe_type.vector)


def broadcast(builder: Any, scalar: Any, lanes: LanesType) -> Any:
    """The LLVM value of sixteen times a scalar."""
    one = builder.insert_element(ir.Constant(lanes.vector, ir.Undefined), scalar, INT(0))
    zeros = ir.Constant(ir.VectorType(INT, LANES), None)
    return builder.shuffle_vector(one, ir.Constant(lanes.vector, ir.Undefined), zeros)


def as_lanes(builder: Any, value: Any, given: types.Type, lanes: LanesType) -> Any:
    """An operand as lanes: itself, or a scalar broadcast."""
    if given is lanes:
        return value
    if lanes is INTS and value.type != INT:
        value = builder.trunc(value, INT) if value.type.width > INT.width else builder.sext(value, INT)
    return broadcast(builder, value, lanes)


def is_operand(given: types.Type, lanes: LanesType) -> bool:
    """Whether a type can stand beside lanes. A float64 cannot: it would hide a second rounding."""
    if lanes is FLOATS:
        return given is FLOATS or given == types.float32
    return given is INTS or isinstance(given, types.Integer)


def declares(operation: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Say which types an operator takes and gives: numba's type_callable, with a type."""
    declare: Callable[[Callable[..., Any]], Callable[..., Any]] = type_callable(operation)
    return declare


def define_binary(
    operation: Callable[..., Any], lanes: LanesType, result: LanesType, build: Callable[..., Any]
) -> None:
    """Give an operator of Python its meaning for lanes: build(builder, left, right) emits it."""

    @declares(operation)
    def type_binary(_context: Any) -> Callable[..., Any]:
        def typer(left: types.Type, right: types.Type) -> types.Type | None:
            fits = (left is lanes or right is lanes) and is_operand(left, lanes) and is_operand(right, lanes)
            return result if fits else None

        return typer

    def lower_binary(_context: Any, builder: Any, signature: Any, values: Any) -> Any:
        operands = (as_lanes(builder, value, given, lanes) for value, given in zip(values, signature.args, strict=True))
        return build(builder, *operands)

    scalar = types.float32 if lanes is FLOATS else types.Integer
    for arguments in ((lanes, lanes), (lanes, scalar), (scalar, lanes)):
        lower_builtin(operation, *arguments)(lower_binary)


def define_mask_operator(operation: Callable[..., Any], build: Callable[..., Any]) -> None:
    """& and | of masks."""

    @declares(operation)
    def type_mask(_context: Any) -> Callable[..., Any]:
        def typer(left: types.Type, right: types.Type) -> types.Type | None:
            return MASK if left is MASK and right is MASK else None

        return typer

    lower_builtin(operation, MASK, MASK)(lambda _context, builder, _signature, values: build(builder, *values))


def float_comparison(sign: str) -> Callable[..., Any]:
    """A comparison as in C: with a NaN, != is true and every other one false."""
    if sign == "!=":
        return lambda builder, left, right: builder.fcmp_unordered(sign, left, right)
    return lambda builder, left, right: builder.fcmp_ordered(sign, left, right)


def int_comparison(sign: str) -> Callable[..., Any]:
    """A signed comparison."""
    return lambda builder, left, right: builder.icmp_signed(sign, left, right)


COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "!=": operator.ne}

for name, build in {"add": "fadd", "sub": "fsub", "mul": "fmul", "truediv": "fdiv"}.items():
    define_binary(getattr(operator, name), FLOATS, FLOATS, getattr(ir.IRBuilder, build))
for name, build in {
    "add": "add", "sub": "sub", "mul": "mul", "and_": "and_", "or_": "or_", "lshift": "shl", "rshift": "lshr",
}.items():  # fmt: skip
    define_binary(getattr(operator, name), INTS, INTS, getattr(ir.IRBuilder, build))
for sign, comparison in COMPARISONS.items():
    define_binary(comparison, FLOATS, MASK, float_comparison(sign))
    define_binary(comparison, INTS, MASK, int_comparison(sign))
define_mask_operator(operator.and_, ir.IRBuilder.and_)
define_mask_operator(operator.or_, ir.IRBuilder.or_)


@declares(operator.neg)
def type_negative(_context: Any) -> Callable[..., Any]:
    """-F32x16."""
    return lambda value: FLOATS if value is FLOATS else None


def lower_negative(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
    """Flips the sign bit, of zero too."""
    return builder.fneg(values[0])


lower_builtin(operator.neg, FLOATS)(lower_negative)


def llvm_call(builder: Any, name: str, lanes: LanesType, values: Any) -> Any:
    """A call of an LLVM intrinsic on vectors."""
    kind = "f32" if lanes is FLOATS else "i32"
    signature = ir.FunctionType(lanes.vector, [lanes.vector] * len(values))
    function = builder.module.declare_intrinsic(f"llvm.{name}.v{LANES}{kind}", fnty=signature)
    return builder.call(function, values)


def instruction(define: Callable[..., Any]) -> Callable[..., Any]:
    """A function of compiled code: define gets the arguments' types, and gives a signature and what emits the code."""
    compiled: Callable[..., Any] = intrinsic(define)
    return compiled


@instruction
def splat(_typing: Any, scalar: Any) -> Any:
    """Sixteen times a float32 or an integer."""
    lanes = FLOATS if scalar == types.float32 else INTS

    def codegen(_context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return as_lanes(builder, values[0], signature.args[0], lanes)

    return lanes(scalar), codegen


@instruction
def absolute(_typing: Any, _value: Any) -> Any:
    """The magnitude of each float lane."""
    return FLOATS(FLOATS), lambda _context, builder, _signature, values: llvm_call(builder, "fabs", FLOATS, values)


@instruction
def square_root(_typing: Any, _value: Any) -> Any:
    """The correctly rounded float32 root of each lane."""
    return FLOATS(FLOATS), lambda _context, builder, _signature, values: llvm_call(builder, "sqrt", FLOATS, values)


@instruction
def rint(_typing: Any, _value: Any) -> Any:
    """Each lane rounded to an integer, halves to even."""
    return FLOATS(FLOATS), lambda _context, builder, _signature, values: llvm_call(builder, "rint", FLOATS, values)


@instruction
def truncate(_typing: Any, _value: Any) -> Any:
    """Each lane rounded towards zero."""
    return FLOATS(FLOATS), lambda _context, builder, _signature, values: llvm_call(builder, "trunc", FLOATS, values)


@instruction
def to_float(_typing: Any, _value: Any) -> Any:
    """int32 lanes as float32, rounded to nearest even."""
    return FLOATS(INTS), lambda _context, builder, _signature, values: builder.sitofp(values[0], FLOATS.vector)


@instruction
def to_int(_typing: Any, _value: Any) -> Any:
    """float32 lanes that hold small integers as int32."""
    return INTS(FLOATS), lambda _context, builder, _signature, values: builder.fptosi(values[0], INTS.vector)


@instruction
def bits_of(_typing: Any, _value: Any) -> Any:
    """The bit patterns of float32 lanes."""
    return INTS(FLOATS), lambda _context, builder, _signature, values: builder.bitcast(values[0], INTS.vector)


@instruction
def from_bits(_typing: Any, _value: Any) -> Any:
    """float32 lanes of these bit patterns."""
    return FLOATS(INTS), lambda _context, builder, _signature, values: builder.bitcast(values[0], FLOATS.vector)


@instruction
def select(_typing: Any, _mask: Any, yes: Any, no: Any) -> Any:
    """Yes where the mask is set, else no; either may be a scalar beside lanes."""
    lanes = no if isinstance(no, LanesType) else yes

    def codegen(_context: Any, builder: Any, signature: Any, values: Any) -> Any:
        chosen = (as_lanes(builder, values[i], signature.args[i], lanes) for i in (1, 2))
        return builder.select(values[0], *chosen)

    return lanes(MASK, yes, no), codegen


@instruction
def any_lane(_typing: Any, _mask: Any) -> Any:
    """Whether the mask is set anywhere."""

    def codegen(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        bits = builder.bitcast(values[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.IntType(LANES)(0))

    return types.boolean(MASK), codegen


@instruction
def largest_lane(_typing: Any, _value: Any) -> Any:
    """The largest of sixteen int32 lanes, as a scalar."""

    def codegen(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        signature = ir.FunctionType(INT, [INTS.vector])
        reduce = builder.module.declare_intrinsic(f"llvm.vector.reduce.smax.v{LANES}i32", fnty=signature)
        return builder.call(reduce, values)

    return types.int32(INTS), codegen


def element_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, pointee: ir.Type) -> Any:
    """Where element index of a contiguous array lies, as a pointer to pointee."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), pointee.as_pointer())


@instruction
def load(_typing: Any, array: Any, index: Any) -> Any:
    """Sixteen float32 or int32 of a contiguous array from element index on; nothing checks the bounds."""
    lanes = FLOATS if array.dtype == types.float32 else INTS

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, start = values
        pointer = element_pointer(context, builder, signature.args[0], source, start, lanes.vector)
        return builder.load(pointer, align=4)

    return lanes(array, types.intp), codegen


@instruction
def load_lane(_typing: Any, tile: Any, index: Any) -> Any:
    """Sixteen float32 of a tile that belong to one lane: every sixteenth from element index on."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lanes = ir.Constant(FLOATS.vector, ir.Undefined)
        for i in range(LANES):
            place = builder.add(values[1], INDEX(i * LANES))
            pointer = element_pointer(context, builder, signature.args[0], values[0], place, FLOAT)
            lanes = builder.insert_element(lanes, builder.load(pointer), INT(i))
        return lanes

    return FLOATS(tile, types.intp), codegen


@instruction
def store(_typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Put sixteen lanes into a contiguous float32 or int32 array from element index on."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        target, start, lanes = values
        pointer = element_pointer(context, builder, signature.args[0], target, start, lanes.type)
        builder.store(lanes, pointer, align=4)

    return types.void(array, types.intp, value), codegen


@instruction
def load_bytes(_typing: Any, array: Any, index: Any) -> Any:
    """Sixteen bytes of a contiguous uint8 or int8 array as I32x16."""
    extend = "sext" if array.dtype == types.int8 else "zext"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, start = values
        narrow = ir.VectorType(BYTE, LANES)
        pointer = element_pointer(context, builder, signature.args[0], source, start, narrow)
        return getattr(builder, extend)(builder.load(pointer, align=1), INTS.vector)

    return INTS(array, types.intp), codegen


@instruction
def store_bytes(_typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Put the low byte of each I32x16 lane into a contiguous uint8 array."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        target, start, lanes = values
        narrow = builder.trunc(lanes, ir.VectorType(BYTE, LANES))
        pointer = element_pointer(context, builder, signature.args[0], target, start, narrow.type)
        builder.store(narrow, pointer, align=1)

    return types.void(array, types.intp, INTS), codegen


@instruction
def load_transposed(_typing: Any, array: Any, offsets: Any, start: Any, tile: Any, target: Any) -> Any:
    """Sixteen float32 from sixteen places, turned so that each place becomes a lane.

    tile[target + 16 * i + lane] = array[offsets[lane] + start + i] for i in 0 .. 15; offsets is an int64 array.
    """

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, places, first, out, at = values
        rows = []
        for lane in range(LANES):
            place = builder.load(element_pointer(context, builder, signature.args[1], places, INDEX(lane), INDEX))
            index = builder.add(place, first)
            pointer = element_pointer(context, builder, signature.args[0], source, index, FLOATS.vector)
            rows.append(builder.load(pointer, align=4))
        for i, row in enumerate(transposed(builder, rows)):
            index = builder.add(at, INDEX(i * LANES))
            builder.store(row, element_pointer(context, builder, signature.args[3], out, index, row.type), align=4)

    return types.void(array, offsets, types.intp, tile, types.intp), codegen


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The transpose of sixteen vectors: four rounds, each swapping the off-diagonal halves of ever smaller squares."""
    rows = list(rows)
    for size in (8, 4, 2, 1):
        # Lanes 16 .. 31 of a shuffle are those of its second vector.
        upper = [lane if not lane & size else lane - size + LANES for lane in range(LANES)]
        lower = [lane + size if not lane & size else lane + LANES for lane in range(LANES)]
        for i in (i for i in range(LANES) if not i & size):
            pair = rows[i], rows[i + size]
            for k, lanes in ((i, upper), (i + size, lower)):
                rows[k] = builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(INT, LANES), lanes))
    return rows

"""The optimized HLO of a compiled program, parsed from its text, and how often a step runs each computation.

A fusion, a call or an async-start runs its callee as often as it runs itself; a `while` runs its body once a trip, and
its condition once more. Every branch of a conditional counts each time, so that sums are upper bounds where there is
one. `to_apply` of other instructions (reduce, sort, scatter) does not count.

The trip count follows from the loop: its counter starts at a constant, grows by a constant and is compared with a
constant. These may be in fusions, in copies, or in the state of outer loops, where XLA puts constants that bodies
share. XLA's own `known_trip_count` is read only where this fails: TPU programs do not have it, and it is 1 for a loop
that counts an unsigned integer from 9 down to 1 (jax 0.10.2). The body of a loop that has neither counts as one trip.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Shape(NamedTuple):
    """Dtype and dims of an array, without its layout."""

    dtype: str  # as XLA writes it: f32, bf16, s32, pred, ...
    dims: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements, without the padding of a TPU's tiles."""
        return -(-self.num_elements * _bits(self.dtype) // 8)


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of the result; all leaves of a tuple, in order
    layout: str  # of the result, if it is an array: the order of its dims and the tiles, as text
    operands: tuple[str, ...]  # names, in the same computation
    literal: str  # of a constant: its value as text; of a parameter: its number
    attributes: str  # the rest of the line
    called: tuple[tuple[str, str], ...]  # (role, computation): calls, to_apply, body, condition, branch


class Computation(NamedTuple):
    name: str
    instructions: dict[str, Instruction]
    root: str
    thread: str  # empty: that of the program; sparsecore: runs beside it on another core of the chip


class Module(NamedTuple):
    computations: dict[str, Computation]  # callees before callers
    entry: str
    num_partitions: int  # devices that run it, each with its shard of every array
    is_scheduled: bool  # computations run in the order of their text


class Loop(NamedTuple):
    """A `while` instruction."""

    name: str
    body: str
    num_trips: int | None  # each time it is entered; None: unknown
    num_entered: int  # in a step
    source: str  # its op_name in the traced program


class Runs(NamedTuple):
    """How often a step runs each computation."""

    times: dict[str, int]  # computation -> runs in a step, if any
    loops: tuple[Loop, ...]
    conditionals: tuple[str, ...]  # names; all their branches count

    @property
    def unknown_loops(self) -> tuple[Loop, ...]:
        """Loops whose trip count is unknown. If there are any, every count is a lower bound."""
        return tuple(loop for loop in self.loops if loop.num_trips is None)


@functools.cache
def _bits(dtype: str) -> int:
    if dtype in ("token", "opaque"):
        return 0
    match = re.search(r"\d+", dtype)
    return int(match[0]) if match else 8  # pred


_HEAD = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?(\S+) = (.*?) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]|(token)\[\]")
_OPERAND = re.compile(r"%([^\s,()]+)")
_CALLED = re.compile(
    r", (?:(calls|to_apply|body|condition)=%?([^\s,]+)"
    r"|(?:true|false)_computation=%?([^\s,]+)|branch_computations=\{([^}]*)\})"
)
_CALLERS = {"fusion", "call", "call-start", "while", "conditional", "async-start"}


def read(text: str) -> Module:
    """Parses the text of a module, as `compiled.as_text()` returns it.

    Raises: ValueError if it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = name = root = ""
    instructions: dict[str, Instruction] | None = None
    for line in _lines(text):
        if instructions is None:
            if line.endswith("{") and (head := _HEAD.match(line)):
                name, root, instructions = head[2], "", {}
                entry = name if head[1] else entry
        elif line.startswith("}"):
            thread = re.search(r'execution_thread="(\w+)"', line)
            computations[name] = Computation(name, instructions, root, thread[1] if thread else "")
            instructions = None
        elif match := _LINE.match(line):
            instruction = _instruction(line, match)
            instructions[instruction.name] = instruction
            root = instruction.name if match[1] else root
    if not entry:
        raise ValueError("the text has no ENTRY computation; pass what `compiled.as_text()` returns")
    head = text.partition("\n")[0]
    partitions = re.search(r"num_partitions=(\d+)", head)
    return Module(computations, entry, int(partitions[1]) if partitions else 1, "is_scheduled=true" in head)


def _lines(text: str) -> Iterator[str]:
    """Yields the lines of the text, joined where an attribute has several, as that of a Pallas kernel has.

    A line that begins with a single brace ends a computation.
    """
    whole = ""
    for line in text.splitlines():
        if line.startswith(('"', "}}")):
            whole += line
        else:
            yield whole
            whole = line
    yield whole


def _instruction(line: str, head: re.Match) -> Instruction:
    _, name, shape, opcode = head.groups()
    start = head.end()
    end = line.index(")", start)
    while line.count("(", start, end) > line.count(")", start, end):
        end = line.index(")", end + 1)
    inside, attributes = line[start:end], line[end + 1 :]
    is_leaf = opcode in ("constant", "parameter")
    return Instruction(
        name=name,
        opcode=opcode,
        shapes=_shapes(shape),
        layout=_layout(shape),
        operands=() if is_leaf else tuple(_OPERAND.findall(inside)),
        literal=inside if is_leaf else "",
        attributes=attributes,
        called=_called(attributes) if opcode in _CALLERS else (),
    )


@functools.lru_cache(maxsize=4096)
def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype or token, tuple(int(size.lstrip("<=")) for size in dims.split(",") if size))
        for dtype, dims, token in _ARRAY.findall(text)
    )


@functools.lru_cache(maxsize=4096)
def _layout(text: str) -> str:
    """Returns 1,0:T(8,128) of f32[8,128]{1,0:T(8,128)S(1)}: S is the memory, which is no part of the layout."""
    match = re.match(r"\w+\[[^\]]*\]\{([^}]*)\}", text)
    return re.sub(r"S\(\d+\)", "", match[1]) if match else ""


def _called(attributes: str) -> tuple[tuple[str, str], ...]:
    """Returns (role, computation) of the computations that an instruction calls."""
    attributes = attributes.partition(", metadata={")[0].partition(", backend_config=")[0]
    called = []
    for role, name, branch, branches in _CALLED.findall(attributes):
        if role:
            called.append((role, name))
        called += [("branch", other) for other in _OPERAND.findall(branches) or [branch] if other]
    return tuple(called)


def source(instruction: Instruction) -> str:
    """Returns the op_name that JAX gave an instruction: its place in the traced program; empty if it has none."""
    match = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return match[1] if match else ""


def fused(module: Module) -> frozenset[str]:
    """Returns the names of the computations that are inside of a fusion: they do not run by themselves."""
    every = (one for computation in module.computations.values() for one in computation.instructions.values())
    return frozenset(callee for one in every if one.opcode == "fusion" for _, callee in one.called)


def count_runs(module: Module) -> Runs:
    """Counts how often a step runs each computation."""
    times = {module.entry: 1}
    loops: list[Loop] = []
    conditionals = []
    bodies = _bodies(module)
    for computation in reversed(module.computations.values()):  # callers first
        num_runs = times.get(computation.name, 0)
        if not num_runs:
            continue
        for instruction in computation.instructions.values():
            if instruction.opcode == "conditional":
                conditionals.append(instruction.name)
            weights = {}
            if instruction.opcode == "while":
                num_trips = _num_trips(module, bodies, computation, instruction)
                body = dict(instruction.called)["body"]
                loops.append(Loop(instruction.name, body, num_trips, num_runs, source(instruction)))
                weights = {"body": 1 if num_trips is None else num_trips}
                weights["condition"] = weights["body"] + 1
            for role, callee in instruction.called:
                times[callee] = times.get(callee, 0) + num_runs * weights.get(role, 1)
    return Runs({name: count for name, count in times.items() if count}, tuple(loops), tuple(conditionals))


class _Site(NamedTuple):
    """An element of the result of an instruction; in a fusion or a call, with the arguments of the caller."""

    computation: Computation
    name: str
    path: tuple[int, ...]  # into the tuple that results; () for an array
    arguments: tuple["_Site", ...] | None  # None in the entry, and in a loop, whose parameter is its state

    @property
    def instruction(self) -> Instruction:
        return self.computation.instructions[self.name]

    def operand(self, index: int = 0, path: tuple[int, ...] = ()) -> "_Site":
        return self._replace(name=self.instruction.operands[index], path=path)


class _Linear(NamedTuple):
    """An integer: `offset`, plus the element at `path` of the state of the enclosing loop, unless `path` is None."""

    path: tuple[int, ...] | None
    offset: int


# Body or condition of a loop -> the computation that has the loop, and the loop. XLA does not share bodies.
_Bodies = dict[str, tuple[Computation, Instruction]]
_IDENTITIES = {"copy", "bitcast", "convert", "reshape", "optimization-barrier"}  # for an integer


def _bodies(module: Module) -> _Bodies:
    return {
        callee: (computation, instruction)
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "while"
        for _, callee in instruction.called
    }


def _root(computation: Computation, path: tuple[int, ...] = ()) -> _Site:
    return _Site(computation, computation.root, path, None)


def _origin(module: Module, site: _Site) -> _Site:
    """Follows an element through tuples, copies and calls to the instruction that computes it."""
    while True:
        instruction, path = site.instruction, site.path
        match instruction.opcode:
            case "get-tuple-element":
                index = re.search(r"index=(\d+)", instruction.attributes)
                site = site.operand(0, (int(index[1]), *path))
            case "tuple" if path:
                site = site.operand(path[0], path[1:])
            case "copy-start":  # returns (the copy, its source, a flag)
                site = site.operand(0, path[1:])
            case "copy-done":
                site = site.operand(0, (0, *path))
            case opcode if opcode in _IDENTITIES:
                site = site.operand(0, path)
            case "fusion" | "call":
                arguments = tuple(site.operand(index) for index in range(len(instruction.operands)))
                [(_, callee)] = instruction.called
                site = _root(module.computations[callee], path)._replace(arguments=arguments)
            case "parameter" if site.arguments is not None:
                argument = site.arguments[int(instruction.literal)]
                site = argument._replace(path=argument.path + path)
            case _:
                return site


def _linear(
    module: Module, site: _Site, known: Callable[[tuple[int, ...]], int | None] = lambda path: None
) -> _Linear | None:
    """Returns an element as an integer; None unless constants and additions make it one.

    `known` maps a path in the state of the loop to its value, if that is the same in every trip.
    """
    site = _origin(module, site)
    instruction = site.instruction
    match instruction.opcode:
        case "constant" if re.fullmatch(r"-?\d+", instruction.literal):
            return _Linear(None, int(instruction.literal))
        case "parameter":
            number = known(site.path)
            return _Linear(site.path, 0) if number is None else _Linear(None, number)
        case "add" | "subtract":
            left, right = (_linear(module, site.operand(index), known) for index in (0, 1))
            if left is None or right is None:
                return None
            if instruction.opcode == "subtract":
                return None if right.path is not None else _Linear(left.path, left.offset - right.offset)
            if left.path is not None and right.path is not None:
                return None
            return _Linear(right.path if left.path is None else left.path, left.offset + right.offset)
        case "while" if _is_invariant(module, instruction, site.path):
            return _linear(module, site.operand(0, site.path), known)
    return None


def _is_invariant(module: Module, loop: Instruction, path: tuple[int, ...]) -> bool:
    """Whether an element of the state of a loop is the same after every trip."""
    body = module.computations[dict(loop.called)["body"]]
    return _linear(module, _root(body, path)) == _Linear(path, 0)


def _constant(module: Module, bodies: _Bodies, site: _Site) -> int | None:
    """Returns the value of an element, from outer loops too; None if it is not the same in every run."""
    value = _linear(module, site)
    if value is None or value.path is None:
        return value and value.offset
    if site.computation.name not in bodies:
        return None
    outer, loop = bodies[site.computation.name]
    if not _is_invariant(module, loop, value.path):
        return None
    start = _constant(module, bodies, _Site(outer, loop.operands[0], value.path, None))
    return None if start is None else start + value.offset


_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}


def _num_trips(module: Module, bodies: _Bodies, computation: Computation, loop: Instruction) -> int | None:
    """Returns the trips of a loop each time it is entered; None if they are unknown."""
    num_trips = _counted_trips(module, bodies, computation, loop)
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    return int(noted[1]) if num_trips is None and noted else num_trips


def _counted_trips(module: Module, bodies: _Bodies, computation: Computation, loop: Instruction) -> int | None:
    """Returns the trips of a loop whose counter, step and bound are constants; None for another loop."""
    called = dict(loop.called)
    compared = _origin(module, _root(module.computations[called["condition"]]))
    if compared.instruction.opcode != "compare":
        return None

    def on_entry(path: tuple[int, ...]) -> int | None:
        return _constant(module, bodies, _Site(computation, loop.operands[0], path, None))

    def known(path: tuple[int, ...]) -> int | None:
        return on_entry(path) if _is_invariant(module, loop, path) else None

    counter, bound = (_linear(module, compared.operand(index), known) for index in (0, 1))
    direction = re.search(r"direction=(\w+)", compared.instruction.attributes)[1]
    if counter is not None and counter.path is None:
        counter, bound, direction = bound, counter, _MIRRORED.get(direction)
    if None in (counter, bound) or counter.path is None or bound.path is not None:
        return None
    start = on_entry(counter.path)
    grown = _linear(module, _root(module.computations[called["body"]], counter.path), known)
    if start is None or grown is None or grown.path != counter.path:
        return None
    step = grown.offset - (1 << 32 if grown.offset >= 1 << 31 else 0)  # u32 counts down by adding 2^32 - 1
    return _trips(bound.offset - counter.offset - start, step, direction)


def _trips(distance: int, step: int, direction: str | None) -> int | None:
    """Returns how many steps take a counter past its bound, which is `distance` away."""
    if direction not in _MIRRORED:  # EQ
        return None
    if direction in ("GT", "GE"):
        distance, step = -distance, -step
    if direction == "NE":
        return distance // step if distance % step == 0 and distance // step >= 0 else None
    distance += direction in ("LE", "GE")
    if distance <= 0:
        return 0
    return -(-distance // step) if step > 0 else None  # else only an overflow can end it

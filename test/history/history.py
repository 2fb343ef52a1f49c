"""A recorded history: what clients asked for and were told, what was done to the servers, and what was there at the end.

One JSON object a line, so that a history can be kept and judged again. Times are
seconds of one monotonic clock: clients of all nodes are threads of one process.
"""
import dataclasses
import json
import threading
import time

now = time.monotonic


def parse_clock(text):
    """{node: counter}; what follows a semicolon is not part of the order."""
    entries = text.strip("{}").split(";")[0]
    return {int(n): int(c) for n, c in (entry.split(":") for entry in entries.split(",") if entry)}


def merge(*clocks):
    result = {}
    for clock in clocks:
        for node, counter in clock.items():
            result[node] = max(counter, result.get(node, 0))
    return result


def within(a, b):
    """Is clock a before b, or equal?"""
    return all(counter <= b.get(node, 0) for node, counter in a.items())


def dot_of(clock):
    """The write a clock stands for, as (counter, node): they sort as last_write does."""
    return max((counter, node) for node, counter in clock.items())


def by_number(members):
    """JSON knows only texts as keys."""
    return {int(name): value for name, value in members.items()}


@dataclasses.dataclass
class Operation:
    """One call of a client, or what is known of it.

    A write is "write" (a register) or "insert"; its id is what it writes, and
    nothing else ever writes that; both insert the id into the set. A read is
    "read" (with the barrier), "look" (plain) or "after" (with the vector of a
    write). outcome is "ok"; "fail": not done, and never will be; or "info":
    nobody told the client.
    """
    id: int
    kind: str
    client: int
    node: str
    invoked: float = None
    returned: float = None
    outcome: str = "info"
    error: str = None          # SQLSTATE and message
    # writes
    level: str = None
    key: int = None            # of the register
    clock: dict = None         # of the row the transaction wrote
    token: str = None
    committing: float = None   # when COMMIT was sent; None if it was not
    notices: list = None       # warnings that came with a success
    # reads
    way: str = None            # how the read was made as new as it has to be
    registers: dict = None     # key: [value, clock]
    torn: list = None          # values of registers whose id was not in the set, in the same snapshot
    wanted: list = None        # ids looked for in the set,
    found: list = None         # and those that were there
    write: int = None          # "after": the id of the write whose vector it was

    def is_write(self):
        return self.kind in ("write", "insert")

    def __repr__(self):
        what = "%s %d" % (self.kind, self.id)
        if self.key is not None:
            what += " of register %d" % self.key
        return "%s (%s, client %d on %s, %.4f to %s, %s%s)" % (
            what, self.level or self.way, self.client, self.node, self.invoked, self.returned and "%.4f" % self.returned,
            self.outcome, ": " + self.error if self.error else "")


@dataclasses.dataclass
class Event:
    """Something done to a node between two times: "crash", "cancel", "terminate" end waits; others are told for the reader."""
    kind: str
    node: str
    invoked: float
    returned: float = None
    detail: str = None


@dataclasses.dataclass
class Answer:
    """What transaction_status said on a node about a write."""
    write: int
    node: str
    invoked: float
    returned: float
    status: str
    final: bool = False        # all was healed and applied everywhere


@dataclasses.dataclass
class Witness:
    """A write was seen at its origin by another session, at the latest at a time; afterwards the other nodes were asked for it."""
    write: int
    seen: float
    has: dict                  # node: bool; nodes that did not answer are not in it


@dataclasses.dataclass
class Final:
    """What a node has when all is healed and applied everywhere."""
    node: str
    registers: dict            # key: [value, clock]
    entries: list              # all ids of the set
    losers: list               # ids in rows that lost a conflict


@dataclasses.dataclass
class Setting:
    """What has to be known about the run."""
    nodes: list
    seed: int
    write_timeout: float       # seconds
    initial: dict              # registers before the first operation


KINDS = {kind.__name__: kind for kind in (Operation, Event, Answer, Witness, Final, Setting)}


class History:
    """All that was recorded; made by many threads at once, or loaded from a file."""

    def __init__(self):
        self.lists = {name: [] for name in KINDS}
        self.lock = threading.Lock()

    operations = property(lambda self: self.lists["Operation"])
    events = property(lambda self: self.lists["Event"])
    answers = property(lambda self: self.lists["Answer"])
    witnesses = property(lambda self: self.lists["Witness"])
    finals = property(lambda self: self.lists["Final"])
    setting = property(lambda self: self.lists["Setting"][0])

    def add(self, record):
        with self.lock:
            self.lists[type(record).__name__].append(record)
        return record

    def writes(self):
        return [operation for operation in self.operations if operation.is_write()]

    def save(self, path):
        with open(path, "w") as file:
            for name, records in self.lists.items():
                for record in records:
                    print(json.dumps([name, dataclasses.asdict(record)]), file=file)

    @classmethod
    def load(cls, path):
        history = cls()
        with open(path) as file:
            for line in file:
                name, fields = json.loads(line)
                for field in ("registers", "initial"):
                    if fields.get(field):
                        fields[field] = {int(key): (value, by_number(clock)) for key, (value, clock) in fields[field].items()}
                if fields.get("clock"):
                    fields["clock"] = by_number(fields["clock"])
                history.add(KINDS[name](**fields))
        return history

"""What must be, computed from what the clients wrote: no server is asked here.

A version is one write of one row, known by its clock. One version knows
another if its clock covers the other's dot. The versions that no other one
knows are those the row is made of, whatever way they came.
"""


def parse_clock(text):
    """{node: counter}; what follows a semicolon is not part of the order."""
    entries = text.strip("{}").split(";")[0]
    return {int(n): int(c) for n, c in (entry.split(":") for entry in entries.split(",") if entry)}


def clock_text(clock):
    return "{%s}" % ",".join("%d:%d" % entry for entry in sorted(clock.items()))


def merge(clocks):
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


def covers(clock, dot):
    return clock.get(dot[1], 0) >= dot[0]


class Version:
    """One write: content is None for a deletion.

    before is the clock of the row it replaced, None if there was none; began
    and ended are the client's times around its transaction; floor is
    what its node had removed tombstones up to. is_lifted: at the end of its
    statement it got a clock above the key's tombstones, and became another.
    """

    def __init__(self, table, key, clock, content, node, by):
        self.table, self.key, self.clock, self.content, self.node, self.by = table, key, clock, content, node, by
        self.dot = dot_of(clock)
        self.before, self.floor, self.transaction, self.is_lifted = None, {}, None, False
        self.began, self.ended = 0, float("inf")

    def __repr__(self):
        return "%s %s %s %s by %s" % (self.table, self.key, clock_text(self.clock),
                                      "deleted" if self.content is None else shorten(self.content), self.by)


def shorten(content):
    return {name: value if len(str(value)) < 40 else "%s... (%d)" % (value[:20], len(value)) for name, value in content.items()}


class History:
    """All versions that were committed, and which of them were evicted from a unique key."""

    def __init__(self, versions, evicted):
        self.evicted = evicted  # (table, key, dot)
        self.rows = {}
        for version in versions:
            self.rows.setdefault((version.table, version.key), []).append(version)
        # A dot is one write of a row; of other rows there may be some with the same. Where a node followed
        # a row of another that is far ahead (server/ticker.c), an insert that is lifted at once may have it too.
        self.by_dot = {(version.table, version.key, version.dot): version
                       for version in sorted(versions, key=lambda version: not version.is_lifted)}

    def is_evicted(self, version):
        return (version.table, version.key, version.dot) in self.evicted

    def is_dead(self, version):
        return version.content is None or self.is_evicted(version)

    def knows(self, a, b):
        """Did the writer of a know b? Of removed tombstones it needs not say so."""
        return covers(a.clock, b.dot) or (self.is_dead(b) and within(b.clock, a.floor))

    def knowers(self, version):
        """The versions that know the given one."""
        return [other for other in self.rows[version.table, version.key] if other is not version and self.knows(other, version)]

    def concurrent(self, table, key):
        """The versions no other one knows, sorted by dot."""
        return sorted((v for v in self.rows[table, key] if not self.knowers(v)), key=lambda v: v.dot)


class Rule:
    """How conflicts of a table are resolved, since a dot: one row of repl_ml.conflict_policy."""

    def __init__(self, since, name, arguments):
        self.since, self.name, self.arguments = since, name, arguments

    def rank(self, version):
        """The greatest wins; last comes what last_write goes by."""
        if self.name == "newest_by":
            columns = [version.content[column] for column in self.arguments]
            return [(value is not None, value) if value is not None else (False,) for value in columns], version.dot
        if self.name == "node_priority":
            node = str(version.dot[1])
            return -(self.arguments.index(node) if node in self.arguments else len(self.arguments)), version.dot
        return version.dot


DEFAULT = Rule((0, 0), "last_write", [])


def rule_at(rules, dot):
    """The rule in force for a conflict whose last write is the given one."""
    return max((rule for rule in rules if rule.since < dot), key=lambda rule: rule.since, default=DEFAULT)


class Expected:
    """What a row is to be: content (None: not there), clock, and the version that won."""

    def __init__(self, history, rules, functions, table, key):
        self.versions = history.concurrent(table, key)
        self.rule = rule_at(rules, self.versions[-1].dot)
        self.clock = merge(version.clock for version in self.versions)
        live = [version for version in self.versions if not history.is_dead(version)]

        if self.rule.name == "node_priority":
            self.winner = max(self.versions, key=self.rule.rank)
        elif history.is_dead(self.versions[-1]):
            self.winner = self.versions[-1]
        else:
            self.winner = max(live, key=self.rule.rank)
        self.content = None
        if not history.is_dead(self.winner):
            self.content = self.winner.content
            if self.rule.name == "function":
                self.content = live[0].content
                for version in live[1:]:
                    self.content = functions[table](self.content, version.content)

    def losers(self, history):
        """The versions that must be in every node's conflict log."""
        return [version for version in self.versions if version.content != self.content
                and (version is not self.winner or history.is_evicted(version))]

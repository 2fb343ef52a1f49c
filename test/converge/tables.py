"""The tables the clients write, each with another way to resolve conflicts.

Keys and unique values have the seed in front, so that a seed has rows of its
own and a group of servers serves many seeds.
"""
import string

KEYS = 6  # per table and seed: few, so that writers meet
FUNCTION = "function(public.combine_folded)"


def body(writer):
    """Often what others write too, now and then too long for its page."""
    kind = writer.random.random()
    if kind < 0.4:
        return writer.random.choice("abc")
    if kind < 0.45:
        return writer.tag() + "".join(writer.random.choices(string.printable[:62], k=6000))
    return writer.tag()


def number(writer):
    return writer.random.randrange(8)


def number_or_null(writer):
    return writer.random.choice((None, 1, 2, 3))


def unique_text(writer):
    """One of a few values of the seed, or none."""
    return writer.random.choice((None, *("%su%d" % (writer.prefix, i) for i in range(5))))


def seed_number(writer):
    return writer.seed


class Table:
    def __init__(self, name, resolver, columns, unique=()):
        self.name, self.resolver, self.columns, self.unique = name, resolver, columns, unique

    def ddl(self):
        columns = ", ".join("%s %s" % (name, kind) for name, kind, _ in self.columns)
        unique = "".join(", UNIQUE (%s)" % ", ".join(names) for names in self.unique)
        return "CREATE TABLE %s (id text PRIMARY KEY, %s%s)" % (self.name, columns, unique)

    def values(self, writer):
        return {name: generate(writer) for name, _, generate in self.columns}


TABLES = [
    Table("note", None, [("body", "text", body), ("grade", "int", number)]),
    Table("draft", None, [("body", "text", body)]),
    Table("account", None, [("email", "text", unique_text), ("body", "text", body)], unique=[("email",)]),
    Table("booking", None, [("place", "text", unique_text), ("seed", "int", seed_number), ("day", "int", number_or_null),
                            ("slot", "int", number_or_null), ("body", "text", body)],
          unique=[("place",), ("seed", "day", "slot")]),
    Table("event", "newest_by(ts, created)", [("ts", "int", number), ("created", "int", number_or_null), ("body", "text", body)]),
    Table("ranked", "node_priority(n2, n1)", [("body", "text", body)]),
    Table("folded", FUNCTION, [("amount", "int", number), ("body", "text", body)]),
    Table("twin", "keep_both", [("body", "text", body)]),
    Table("shifting", None, [("ts", "int", number), ("body", "text", body)]),
]

# what repl_ml.set_resolver is called with for the table "shifting" while clients write
SHIFTS = ["last_write", "newest_by(ts)", "node_priority(n3, n1)", "node_priority(n1)", "keep_both"]

# symmetric, but not associative: the order in which versions are combined must be theirs
FUNCTION_DDL = """
CREATE OR REPLACE FUNCTION public.combine_folded(a public.folded, b public.folded, a_clock repl_ml.vclock, b_clock repl_ml.vclock)
RETURNS public.folded LANGUAGE sql IMMUTABLE AS $$
SELECT ROW((r).*)::public.folded FROM (SELECT jsonb_populate_record(a, jsonb_build_object(
    'amount', abs(a.amount - b.amount), 'body', least(a.body COLLATE "C", b.body COLLATE "C"))) AS r) q
$$
"""


def combine_folded(a, b):
    return {"id": a["id"], "amount": abs(a["amount"] - b["amount"]), "body": min(a["body"], b["body"])}


# a table whose columns are merged, with clients and rules of its own: tally.py
TALLY_DDL = "CREATE TABLE tally (id text PRIMARY KEY, n int, vec numeric[], peak int, tags text[], doc jsonb, a text, b text)"
TALLY_MERGES = {"n": "counter", "vec": "counter", "peak": "max", "tags": "set_union", "doc": "jsonb_merge", "a": "independent", "b": "independent"}

CHOSEN = list(TABLES)  # those that are written
FUNCTIONS = {"folded": combine_folded}
BY_NAME = {table.name: table for table in TABLES}

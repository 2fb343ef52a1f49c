"""Types of columns, and values of each that differ in some bit, however little; keys of each type that can be one."""

# What a node has to have before tables are made.
TYPES_DDL = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a int, m mood, t text);
CREATE TYPE nested AS (p pair, f float8[], r int4range);
CREATE DOMAIN short AS text CHECK (length(value) < 50);
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE DOMAIN pairs AS pair[];
CREATE TYPE float_range AS RANGE (subtype = float8);
CREATE TYPE moods AS RANGE (subtype = mood);
CREATE COLLATION IF NOT EXISTS caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
"""


def texts(*values):
    return ["'%s'" % value for value in values]


# Values that are not the same to the bit; what is equal by the type's own operator stands side by side.
VALUES = {
    "int2": ["0", "1", "-1", "32767"],
    "int4": ["0", "1", "-2147483648", "65536"],
    "int8": ["0", "1", "4294967296", "-9223372036854775808"],
    "float4": texts("0", "-0", "1.1", "1.1000001", "NaN", "NaN(0x1)", "Infinity"),
    "float8": texts("0", "-0", "0.1", "0.10000000000000002", "NaN", "NaN(0x123)", "NaN(0x124)", "-Infinity", "5e-324"),
    "numeric": texts("1", "1.0", "1.00", "0", "NaN", "1e100", "-0.001"),
    "numeric(20,3)": texts("1", "1.001", "-1", "123456789012345.678"),
    "money": texts("1.00", "1.01", "-5.00"),
    "bool": ["true", "false"],
    "text": texts("", " ", "a", "A", "ä", "a ", "b") + ["repeat('x', 126)", "repeat('x', 127)", "repeat('x', 1024)", "repeat('x', 1025)", "repeat('x', 1024) || 'y'",
                                                      "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 300) i)",
                                                      "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 299) i) || md5('x')", "repeat('long ', 10000)"],
    "varchar(2000)": texts("", "v", "V") + ["repeat('v', 1500)"],
    "char(5)": texts("", "a", "b"),
    '"char"': texts("", "a", "b"),
    "name": texts("", "n", "N"),
    "bytea": [r"'\x'", r"'\x00'", r"'\x0000'", "decode(repeat('00ff', 1500), 'hex')", "decode(repeat('00ff', 1499) || '00fe', 'hex')"],
    "date": texts("2000-01-01", "2000-01-02", "infinity", "4713-01-01 BC"),
    "time": texts("00:00", "24:00", "12:00:00.000001"),
    "timetz": texts("12:00+00", "13:00+01", "12:00:00.000001+00"),
    "timestamp": texts("2000-01-01", "2000-01-01 00:00:00.000001", "-infinity"),
    "timestamptz": texts("2000-01-01 00:00+00", "2000-01-01 00:00:00.000001+00", "infinity"),
    "interval": texts("1 day", "24 hours", "1 mon", "30 days", "0", "-1 mon 30 days"),
    "uuid": texts("00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000001"),
    "json": texts("{}", "{ }", '{"a": 1}', '{"a":1}', '{"a":1,"a":2}', "null"),
    "jsonb": texts("{}", "[]", '{"a": 1}', '{"a": 1.0}', '{"a": 1.00}', '{"a": "1"}', "null", '"x"', '[[], {}, [null]]') + [
        "jsonb_build_object('k', repeat('j', 5000))", "(SELECT jsonb_object_agg('k' || i, i) FROM generate_series(1, 500) i)",
        "(SELECT jsonb_object_agg('k' || i, i) FROM generate_series(1, 500) i) || '{\"k250\": 251}'"],
    "jsonpath": texts("$", "strict $", "$.a"),
    "xml": texts("<a/>", "<a></a>", '<?xml version="1.0" encoding="UTF-8"?><b/>', "x"),
    "bit(3)": ["B'000'", "B'001'"],
    "varbit": ["B''", "B'0'", "B'00'", "B'1'"],
    "inet": texts("10.0.0.0/8", "10.0.0.0/16", "10.0.0.0", "::1"),
    "cidr": texts("10.0.0.0/8", "10.0.0.0/16"),
    "macaddr": texts("08:00:2b:01:02:03", "08:00:2b:01:02:04"),
    "macaddr8": texts("08:00:2b:ff:fe:01:02:03", "08:00:2b:ff:fe:01:02:04"),
    "point": texts("(0,0)", "(0,-0)", "(1,NaN)", "(1,0)"),
    "line": texts("{1,2,3}", "{1,2,-3}"),
    "lseg": texts("[(0,0),(1,1)]", "[(1,1),(0,0)]"),
    "box": texts("(1,1),(0,0)", "(1,1),(-0,0)"),
    "path": texts("[(0,0),(1,1)]", "((0,0),(1,1))", "[(0,-0),(1,1)]"),
    "polygon": texts("((0,0),(1,1),(1,0))", "((1,1),(1,0),(0,0))"),
    "circle": texts("<(0,0),1>", "<(0,-0),1>", "<(0,0),2>"),
    "oid": texts("1", "4294967295"),
    "xid": texts("1", "2"),
    "xid8": texts("1", "18446744073709551615"),
    "tid": texts("(0,1)", "(0,2)"),
    "pg_lsn": texts("0/1", "1/0"),
    "pg_snapshot": texts("10:20:10,14", "10:20:10,15"),
    "tsvector": ["to_tsvector('simple', 'b a b')", "to_tsvector('simple', 'b a')", "''"],
    "tsquery": texts("a & b", "b & a", "a | b"),
    "regclass": texts("pg_class", "pg_proc", "tables_of_types"),
    "regtype": texts("int", "mood", "pair"),
    "int2vector": texts("1 2", "2 1", ""),
    "oidvector": texts("1 2", ""),
    "refcursor": texts("", "c"),
    "mood": texts("sad", "ok", "happy"),
    "pair": ["ROW(NULL, NULL, NULL)", "ROW(1, 'sad', '')", "ROW(1, 'ok', '')", "ROW(1, 'ok', NULL)", "ROW(2, 'ok', repeat('p', 3000))"],
    "nested": ["ROW(ROW(1, 'ok', 'x'), '{1,0}', '[1,5)')", "ROW(ROW(1, 'ok', 'x'), '{1,-0}', '[1,5)')", "ROW(ROW(1, 'ok', 'x'), '{1,0}', '[1,6)')", "ROW(ROW(1, 'sad', 'x'), '{1,0}', '[1,5)')",
               "ROW(NULL, '{1,NaN}', 'empty')"],
    "short": texts("", "d", "D"),
    "positive": texts("1", "2"),
    "pairs": ["'{}'", "ARRAY[ROW(1, 'ok', 'x')::pair, NULL]", "ARRAY[ROW(1, 'sad', 'x')::pair, NULL]", "ARRAY[NULL, ROW(1, 'ok', 'x')::pair]"],
    "int4[]": texts("{}", "{1,2}", "{2,1}", "[2:3]={1,2}", "{1,NULL,2}", "{{1,2}}", "{{1},{2}}"),
    "text[]": texts("{}", "{x}", "{NULL}", '{""}', "{{x},{NULL}}", "[2:3][1:1]={{x},{NULL}}") + ["ARRAY[repeat('t', 5000)]", "ARRAY[repeat('t', 4999) || 'u']"],
    "float8[]": texts("{0,1}", "{-0,1}", "{NaN}", "{NaN(0x5)}"),
    "mood[]": texts("{sad,NULL,ok}", "{sad,NULL,happy}", "{}"),
    "numeric[]": texts("{1.0}", "{1.00}", "{NaN}"),
    "int4range": texts("empty", "[1,5)", "[1,6)", "(,5)", "[1,)", "(,)"),
    "numrange": texts("[1,5)", "(1,5)", "[1,5]", "[1.0,5)", "empty"),
    "tstzrange": texts("[2000-01-01 00:00+00,)", "(2000-01-01 00:00+00,)"),
    "float_range": texts("[0,1)", "[-0,1)", "empty"),
    "moods": texts("[sad,happy]", "(sad,happy]", "empty"),
    "nummultirange": texts("{}", "{[1,2),[3,4)}", "{[1,2),[3,4]}", "{(,)}"),
    "int4multirange": texts("{}", "{[1,2),[3,4)}", "{[1,2)}"),
}

# Of extensions that may not be installed everywhere.
EXTENSIONS = {
    "citext": {"citext": texts("a", "A", "")},
    "hstore": {"hstore": texts("a=>1", "a=>NULL", "a=>1,b=>2", "")},
    "ltree": {"ltree": texts("a.b", "a.c", "")},
    "cube": {"cube": texts("(1,2)", "(1,3)", "(0),(1)")},
}

# Keys: the i-th value of a type, different for each i.
KEYS = {
    "int4": lambda i: str(i),
    "int2": lambda i: str(i - 3000),
    "int8": lambda i: str(i * 10000000019),
    "text": lambda i: "'%s%d'" % ("aAbBäÄ_- z"[i % 10], i),
    "varchar(30)": lambda i: "'%s%d'" % ("xXyY"[i % 4], i),
    'text COLLATE caseless': lambda i: "'%s%d'" % ("cD"[i % 2], i),
    "char(8)": lambda i: "'%d'" % i,
    "name": lambda i: "'%s%d'" % ("nN"[i % 2], i),
    "bytea": lambda i: r"'\x%06x'" % i,
    "uuid": lambda i: "'%08x-0000-0000-0000-000000000000'" % (i * 2654435761 % 2 ** 32),
    "numeric": lambda i: "%d.%s" % (i, "10" * (i % 3 + 1)),
    "float8": lambda i: "%d.5" % (i - 500),
    "date": lambda i: "DATE '1999-12-01' + %d" % i,
    "timestamptz": lambda i: "TIMESTAMPTZ '2000-01-01 00:00+00' + %d * INTERVAL '1 hour 1 microsecond'" % i,
    "time": lambda i: "TIME '00:00' + %d * INTERVAL '1 second'" % i,
    "interval": lambda i: "%d * INTERVAL '1 hour'" % i,
    "inet": lambda i: "'10.0.%d.%d'" % (i // 256, i % 256),
    "macaddr": lambda i: "'08:00:2b:00:%02x:%02x'" % (i // 256, i % 256),
    "oid": lambda i: str(i + 1),
    "pg_lsn": lambda i: "'0/%X'" % (i + 1),
    "money": lambda i: "%d::money" % i,
    "bit(16)": lambda i: "%d::bit(16)" % i,
    "int4[]": lambda i: "ARRAY[%d, %d]" % (i % 7, i),
    "text[]": lambda i: "ARRAY['%s', NULL, 'k%d']" % ("xX"[i % 2], i),
    "jsonb": lambda i: "'{\"k\": [%d, \"x\"]}'" % i,
    "int4range": lambda i: "int4range(%d, %d)" % (i, i + 5),
    "numrange": lambda i: "numrange(%d, %d.50)" % (i, i + 1),
    "nummultirange": lambda i: "nummultirange(numrange(%d, %d))" % (i, i + 1),
    "pair": lambda i: "ROW(%d, '%s', 'k')::pair" % (i, ["sad", "ok"][i % 2]),
    "short": lambda i: "'s%d'" % i,
    "positive": lambda i: str(i + 1),
    "tsvector": lambda i: "to_tsvector('simple', 'w%d x')" % i,
    "int2vector": None,
}
KEYS = {name: make for name, make in KEYS.items() if make}

# Further columns of a key, with few values.
FEW = {
    "bool": lambda i: ["true", "false"][i % 2],
    "mood": lambda i: ["'sad'", "'ok'", "'happy'"][i % 3],
    "text": lambda i: ["''", "'b'", "'B'", "'ä'"][i % 4],
    "int4": lambda i: str(i % 5),
    "numeric": lambda i: ["1", "2.0", "3.00"][i % 3],
    "uuid": lambda i: "'00000000-0000-0000-0000-00000000000%d'" % (i % 10),
    "mood[]": lambda i: ["'{}'", "'{sad,ok}'"][i % 2],
    "date": lambda i: ["'infinity'", "'2000-01-01'"][i % 2],
}
COLLATIONS = ['"C"', '"POSIX"', '"und-x-icu"', '"en-x-icu"', '"sv-x-icu"']

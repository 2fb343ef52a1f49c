#!/usr/bin/python3
"""Statements of MLflow's tracking store and model registry and of Feast's online store.

mlflow_feast.py DSN NAME create          makes experiments, runs, models, traces, features called after NAME
mlflow_feast.py DSN NAME change ROUND    works on with those that another client called after NAME

Every table of both schemas is written. The statements are those that SQLAlchemy and Feast send: upserts with
executemany, RETURNING, SELECT ... FOR UPDATE, COPY, cascading renames and deletions. Any error ends it.
"""
import io
import json
import struct
import sys

import psycopg2
import psycopg2.extras

VIEWS = ("demo_driver_hourly_stats", "demo_customer_profile")


def insert(cur, table, returning=None, **row):
    columns = ", ".join('"%s"' % name for name in row)
    values = ", ".join("%%(%s)s" % name for name in row)
    cur.execute("INSERT INTO %s (%s) VALUES (%s)" % (table, columns, values)
                + (" RETURNING %s.%s" % (table, returning) if returning else ""), row)
    return cur.fetchone()[0] if returning else None


def insert_many(cur, table, columns, rows):
    psycopg2.extras.execute_values(cur, "INSERT INTO %s (%s) VALUES %%s" % (table, columns), rows, page_size=7)


# ---- MLflow, tracking ----

def create_experiment(cur, name):
    experiment = insert(cur, "experiments", "experiment_id", name="exp " + name, artifact_location="s3://é/" + name,
                        lifecycle_stage="active", creation_time=1, last_update_time=1)
    cur.execute("SELECT lastval()")
    assert cur.fetchone()[0] == experiment, "LASTVAL() is the client's own"
    insert_many(cur, "experiment_tags", "key, value, experiment_id", [("k%d" % i, "v", experiment) for i in range(3)])
    return experiment


def create_runs(connection, cur, name, experiment):
    for i in range(10):
        run = "%s-run%d" % (name, i)
        insert(cur, "runs", run_uuid=run, name="run", source_type="LOCAL", user_id="me", status="RUNNING", start_time=i,
               lifecycle_stage="active", artifact_uri="s3://" + run, experiment_id=experiment)
        connection.commit()
        insert_many(cur, "params", "key, value, run_uuid", [("p%d" % p, "x" * p, run) for p in range(15)])
        log_metrics(cur, run, range(8))
        insert_many(cur, "tags", "key, value, run_uuid", [("mlflow.user", "me", run), ("note", None, run)])
        cur.execute("UPDATE runs SET status = 'FINISHED', end_time = %s WHERE runs.run_uuid = %s", (i + 1, run))
        connection.commit()


def log_metrics(cur, run, steps):
    """Every value, and by hand the latest one of each key, which is locked first."""
    rows = [("m%d" % (step % 3), float("%d.1" % step), step, run, step, False) for step in steps]
    cur.executemany("INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES (%s, %s, %s, %s, %s, %s)", rows)
    latest = {row[0]: row for row in rows}
    cur.execute("SELECT key FROM latest_metrics WHERE run_uuid = %s AND key IN %s ORDER BY run_uuid, key FOR UPDATE",
                (run, tuple(latest)))
    present = {row[0] for row in cur.fetchall()}
    for key, value, timestamp, run, step, is_nan in latest.values():
        if key in present:
            cur.execute("UPDATE latest_metrics SET value = %s, timestamp = %s, step = %s, is_nan = %s WHERE key = %s AND run_uuid = %s",
                        (value, timestamp, step, is_nan, key, run))
        else:
            insert(cur, "latest_metrics", key=key, value=value, timestamp=timestamp, step=step, is_nan=is_nan, run_uuid=run)


def create_datasets(cur, name, experiment):
    insert(cur, "datasets", dataset_uuid=name + "-ds", experiment_id=experiment, name="ds " + name, digest="d",
           dataset_source_type="local", dataset_source="{}", dataset_schema=json.dumps({"a": ["é"]}), dataset_profile="p" * 5000)
    insert(cur, "inputs", input_uuid=name + "-in", source_type="DATASET", source_id=name + "-ds",
           destination_type="RUN", destination_id=name + "-run0")
    insert(cur, "input_tags", input_uuid=name + "-in", name="context", value="train")
    insert(cur, "evaluation_datasets", dataset_id=name + "-ev", name="ev", schema="{}", profile="{}", digest="d", created_time=1)
    insert_many(cur, "evaluation_dataset_records",
                "dataset_record_id, dataset_id, inputs, expectations, tags, source, created_time, input_hash, outputs",
                [("%s-rec%d" % (name, i), name + "-ev", json.dumps({"q": "é\n\"%d" % i}), "null", "{}", None, i, "h%d" % i, "[1, 2.50]")
                 for i in range(5)])
    insert(cur, "evaluation_dataset_tags", dataset_id=name + "-ev", key="k", value="v")
    insert(cur, "entity_associations", association_id=name, source_type="evaluation_dataset", source_id=name + "-ev",
           destination_type="experiment", destination_id=str(experiment), created_time=1)


def create_traces(cur, name, experiment):
    for i in range(4):
        trace = "%s-tr%d" % (name, i)
        insert(cur, "trace_info", request_id=trace, experiment_id=experiment, timestamp_ms=i, execution_time_ms=5, status="OK",
               request_preview="r" * 1000, response_preview=None)
        insert_many(cur, "trace_tags", "key, value, request_id", [("t%d" % t, "v", trace) for t in range(3)])
        insert(cur, "trace_request_metadata", key="m", value="v", request_id=trace)
        psycopg2.extras.execute_values(
            cur, "INSERT INTO spans (trace_id, experiment_id, span_id, parent_span_id, name, type, status, start_time_unix_nano,"
            " end_time_unix_nano, content) VALUES %s ON CONFLICT (trace_id, span_id) DO UPDATE SET status = EXCLUDED.status,"
            " end_time_unix_nano = EXCLUDED.end_time_unix_nano, content = EXCLUDED.content",
            [(trace, experiment, "s%d" % s, None, "span", "LLM", "OK", 10 * s, 10 * s + 5 if s else None, json.dumps({"c": "é" * 3000}))
             for s in range(3)])
        insert(cur, "assessments", assessment_id=trace + "-a", trace_id=trace, name="ok", assessment_type="feedback", value="true",
               created_timestamp=1, last_updated_timestamp=1, source_type="HUMAN", valid=True)


def create_logged_models(cur, name, experiment):
    insert(cur, "logged_models", model_id=name + "-lm", experiment_id=experiment, name="lm", artifact_location="s3://lm",
           creation_timestamp_ms=1, last_updated_timestamp_ms=1, status=1, lifecycle_stage="active")
    insert_many(cur, "logged_model_params", "model_id, experiment_id, param_key, param_value",
                [(name + "-lm", experiment, "p%d" % i, "v") for i in range(3)])
    insert(cur, "logged_model_tags", model_id=name + "-lm", experiment_id=experiment, tag_key="t", tag_value="v")
    insert_many(cur, "logged_model_metrics",
                "model_id, metric_name, metric_timestamp_ms, metric_step, metric_value, experiment_id, run_id",
                [(name + "-lm", "acc", i, i, float("nan") if i == 1 else 0.1 * i, experiment, name + "-run0") for i in range(3)])


def create_others(cur, name, experiment):
    insert(cur, "alembic_version", version_num="rev-" + name)
    insert(cur, "jobs", id=name + "-job", creation_time=1, function_fullname="f", params="{}", timeout=0.1, status=0, retry_count=0,
           last_update_time=1)
    insert(cur, "scorers", experiment_id=experiment, scorer_name="sc", scorer_id=name + "-sc")
    insert_many(cur, "scorer_versions", "scorer_id, scorer_version, serialized_scorer", [(name + "-sc", i, "s" * 4000) for i in (1, 2)])
    for i in range(2):
        insert(cur, "webhooks", webhook_id="%s-wh%d" % (name, i), name="wh", url="https://é", status="ACTIVE", creation_timestamp=1,
               last_updated_timestamp=1)
        insert_many(cur, "webhook_events", "webhook_id, entity, action", [("%s-wh%d" % (name, i), "model", a) for a in ("created", "deleted")])


# ---- MLflow, registry ----

def create_models(cur, name):
    for i in range(4):
        model = "%s/model %d" % (name, i)
        insert(cur, "registered_models", name=model, creation_time=1, last_updated_time=1, description=None)
        insert_many(cur, "registered_model_tags", "key, value, name", [("t%d" % t, "v", model) for t in range(2)])
        for version in (1, 2, 3):
            insert(cur, "model_versions", name=model, version=version, creation_time=1, current_stage="None", source="s3://m",
                   run_id=name + "-run0", status="READY")
            insert_many(cur, "model_version_tags", "key, value, name, version", [("vt%d" % t, "v", model, version) for t in range(2)])
        insert_many(cur, "registered_model_aliases", "alias, version, name", [("champion", 1, model), ("challenger", 2, model)])


def rename_model(cur, old, new):
    cur.execute("UPDATE registered_models SET name = %s, last_updated_time = 2 WHERE registered_models.name = %s", (new, old))
    assert cur.rowcount == 1, old


def set_alias(cur, model, alias, version):
    cur.execute("SELECT version FROM registered_model_aliases WHERE name = %s AND alias = %s", (model, alias))
    if cur.fetchone():
        cur.execute("UPDATE registered_model_aliases SET version = %s WHERE name = %s AND alias = %s", (version, model, alias))
    else:
        insert(cur, "registered_model_aliases", name=model, alias=alias, version=version)


def delete_model(cur, model):
    for table in ("model_version_tags", "model_versions", "registered_model_tags", "registered_models"):
        cur.execute("DELETE FROM %s WHERE name = %%s" % table, (model,))


# ---- Feast ----

def write_features(cur, view, name, value):
    rows = [(b"\x02\x00" + ("driver_id:%s:%d" % (name, i)).encode(), "feature%d" % f, struct.pack("<d", value + i),
             "text %s" % value if f else None, b"\x00" * 100 * f, "2026-01-01T00:00:00+05:45", "2026-01-01 00:00:00.000001+00")
            for i in range(30) for f in range(3)]
    cur.executemany(
        'INSERT INTO "%s" (entity_key, feature_name, value, value_text, vector_value, event_ts, created_ts)'
        " VALUES (%%s, %%s, %%s, %%s, %%s, %%s, %%s) ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = EXCLUDED.value,"
        " value_text = EXCLUDED.value_text, vector_value = EXCLUDED.vector_value, event_ts = EXCLUDED.event_ts,"
        " created_ts = EXCLUDED.created_ts" % view, rows)


def copy_features(cur, view, name):
    """The way of bulk loads: a COPY without columns has those of the table as its maker knows it."""
    cur.execute("CREATE TEMP TABLE IF NOT EXISTS staging (entity_key bytea, feature_name text, value bytea)")
    lines = io.StringIO("".join("\\\\x%s\tf\t\\\\x00\n" % ("bulk:%s:%d" % (name, i)).encode().hex() for i in range(50)))
    cur.copy_from(lines, "staging")
    cur.execute('INSERT INTO "%s" (entity_key, feature_name, value) SELECT * FROM staging' % view)
    cur.execute("TRUNCATE staging")
    rows = io.StringIO("".join("\\\\x%s\tg\t\\\\x00\t\\N\t\\N\t2026-01-01\t2026-01-01\n" % ("bulk:%s:%d" % (name, i)).encode().hex()
                               for i in range(50)))
    cur.copy_expert('COPY "%s" FROM STDIN' % VIEWS[0], rows)


def read_features(cur, view, name, expected):
    cur.execute('SELECT entity_key, feature_name, value, event_ts FROM "%s" WHERE entity_key = ANY(%%s) AND feature_name = ANY(%%s)' % view,
                ([b"\x02\x00" + ("driver_id:%s:%d" % (name, i)).encode() for i in range(30)], ["feature1"]))
    values = [struct.unpack("<d", row[2])[0] for row in cur.fetchall()]
    assert sorted(values) == [expected + i for i in range(30)], values


# ---- what the two kinds of client do ----

def create(connection, cur, name):
    experiment = create_experiment(cur, name)
    connection.commit()
    create_runs(connection, cur, name, experiment)
    for step in (create_datasets, create_traces, create_logged_models, create_others):
        step(cur, name, experiment)
        connection.commit()
    create_models(cur, name)
    connection.commit()
    for view in VIEWS:
        write_features(cur, view, name, 1.0)
        write_features(cur, view, name, 2.0)
        connection.commit()
    copy_features(cur, VIEWS[0], name)
    connection.commit()


def change_tracking(cur, name, number):
    cur.execute("SELECT * FROM experiments WHERE name = %s FOR UPDATE", ("exp " + name,))
    experiment = cur.fetchone()[0]
    cur.execute("UPDATE experiments SET last_update_time = %s WHERE experiment_id = %s", (number, experiment))
    cur.execute("INSERT INTO experiment_tags (key, value, experiment_id) VALUES ('k0', %s, %s)"
                " ON CONFLICT (key, experiment_id) DO UPDATE SET value = EXCLUDED.value", (str(number), experiment))
    for i in range(10):
        log_metrics(cur, "%s-run%d" % (name, i), range(10 * number, 10 * number + 4))
    cur.execute("UPDATE runs SET lifecycle_stage = 'deleted', deleted_time = 5 WHERE experiment_id = %s AND start_time > 7", (experiment,))
    cur.execute("DELETE FROM tags WHERE run_uuid = %s AND key = 'note' RETURNING value", (name + "-run1",))
    cur.execute("DELETE FROM trace_info WHERE experiment_id = %s AND timestamp_ms <= %s", (experiment, number - 1))
    cur.execute("UPDATE spans SET status = %s, end_time_unix_nano = %s WHERE trace_id = %s", (str(number), 100 + number, name + "-tr3"))
    cur.execute("UPDATE assessments SET valid = NOT valid, overrides = assessment_id WHERE trace_id = %s", (name + "-tr3",))
    cur.execute("UPDATE evaluation_dataset_records SET outputs = %s, expectations = NULL WHERE dataset_id = %s",
                (json.dumps([number]), name + "-ev"))
    cur.execute("UPDATE datasets SET digest = %s WHERE dataset_uuid = %s", (str(number), name + "-ds"))
    cur.execute("UPDATE jobs SET status = %s, result = %s, last_update_time = %s WHERE id = %s AND status IN (0, 1) RETURNING jobs.id",
                (1, "r" * 9000, number, name + "-job"))
    cur.execute("DELETE FROM webhooks WHERE webhook_id = %s", ("%s-wh%d" % (name, number - 1),))
    insert(cur, "webhooks", webhook_id="%s-wh%d" % (name, number - 1), name="again", url="https://é", status="ACTIVE",
           creation_timestamp=2, last_updated_timestamp=2)
    insert(cur, "webhook_events", webhook_id="%s-wh%d" % (name, number - 1), entity="model", action="created")
    cur.execute("DELETE FROM logged_models WHERE model_id = %s", (name + "-lm",))
    create_logged_models(cur, name, experiment)
    cur.execute("UPDATE alembic_version SET version_num = %s WHERE alembic_version.version_num = %s",
                ("next%d-%s" % (number, name), "rev-" + name if number == 1 else "next%d-%s" % (number - 1, name)))
    assert cur.rowcount == 1


def change_models(cur, name, number):
    old = "" if number == 1 else " renamed %d" % (number - 1)
    model = "%s/model 0" % name
    rename_model(cur, model + old, "%s renamed %d" % (model, number))
    model = "%s renamed %d" % (model, number)
    cur.execute("SELECT * FROM model_versions WHERE name = %s FOR UPDATE", (model,))
    assert len(cur.fetchall()) == 3
    set_alias(cur, model, "champion", number + 1)
    set_alias(cur, model, "new%d" % number, 1)
    cur.execute("DELETE FROM registered_model_aliases WHERE name = %s AND alias = 'challenger'", (model,))
    cur.execute("UPDATE model_versions SET current_stage = 'Archived' WHERE name = %s AND version < %s", (model, number + 1))
    cur.execute("UPDATE model_version_tags SET value = %s WHERE name = %s AND key = 'vt0'", (str(number), model))
    # there and back again, deleted and made again
    rename_model(cur, "%s/model 1" % name, "%s/other" % name)
    rename_model(cur, "%s/other" % name, "%s/model 1" % name)
    delete_model(cur, "%s/model 2" % name)
    insert(cur, "registered_models", name="%s/model 2" % name, creation_time=number)
    insert(cur, "model_versions", name="%s/model 2" % name, version=1, status="READY")


def change(connection, cur, name, number):
    change_tracking(cur, name, number)
    connection.commit()
    change_models(cur, name, number)
    connection.commit()
    for view in VIEWS:
        read_features(cur, view, name, number + 1.0)
        cur.execute('DELETE FROM "%s" WHERE feature_name = %%s AND entity_key = %%s' % view,
                    ("feature2", b"\x02\x00" + ("driver_id:%s:0" % name).encode()))
        connection.commit()
        write_features(cur, view, name, number + 2.0)
        connection.commit()


def main():
    dsn, name, what = sys.argv[1:4]
    connection = psycopg2.connect(dsn)
    with connection.cursor() as cur:
        if what == "create":
            create(connection, cur, name)
        else:
            change(connection, cur, name, int(sys.argv[4]))
    connection.close()


main()

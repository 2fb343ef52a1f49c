#!/usr/bin/python3
"""The service of examples/ against the nodes of a group: registry_service.py FIRST LAST DSN...

Publishes the versions FIRST to LAST of a model, one after the other, and after each one asks for the newest three times:
another service without waiting and with a strong read, and the same one in its session. Prints, as JSON, how many answers
of each kind were old.
"""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../examples"))
from replicated_model_service import ReplicatedModelService

first, last, dsns = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
trainer, server = ReplicatedModelService(dsns, 60), ReplicatedModelService(dsns, 60)
old = {"eventual": 0, "session": 0, "strong": 0}
newest = "SELECT max(version) FROM model_version WHERE name = %s"
for version in range(first, last + 1):
    trainer.write("INSERT INTO model_version VALUES (%s, %s)", ("churn", version))
    for _ in dsns:
        for consistency in old:
            who = trainer if consistency == "session" else server
            ((seen,),) = who.read(newest, ("churn",), consistency, patience=1.0)
            old[consistency] += seen is None or seen < version
old["late"] = trainer.wait_for_replication(0.2)
print(json.dumps(old))

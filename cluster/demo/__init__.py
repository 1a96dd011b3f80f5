"""The demo: one durable run per installed distribution audits the Python environment that it runs in.

command      `understudy demo`: starts the runs, kills, answers, watches, counts
environment  what is installed, and the variables of policy.yaml
graph        the audit: ten nodes with two branches, two loops, a fan-out, and a question to a person
audit        what one run knows: its state
tools        what the audit does to the world: six tools, in a sandbox, under policy.yaml
  files      ... reading RECORD and hashing     (stdlib only: every tool call pays for its imports)
  sources    ... reading source with `ast`
  probe      ... a script that imports one module and writes down what that did
scoring      what the findings are worth, 0 to 100, with reasons
ledger       the append-only file outside the store, and the check that every row is in it exactly once
report, show the report; the live view and the summary on the terminal
"""

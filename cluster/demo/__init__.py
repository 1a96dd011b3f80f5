"""The demo: one durable run per installed distribution audits the Python environment that it runs in.

environment  what is installed, and the variables of policy.yaml
graph        the audit: ten nodes, two branches, two loops, one fan-out, one question to a person
tools        what the audit does to the world: five tools, in a sandbox, under policy.yaml
  files      ... reading RECORD and hashing     (stdlib only: every tool call pays for its imports)
  sources    ... reading source with `ast`
  probe      ... a script that imports one module and writes down what that did
scoring      what the findings are worth, 0 to 100, with reasons
ledger       the append-only file outside the store, and the check that every row is in it exactly once
report, show the report; the live view and the summary on the terminal
"""

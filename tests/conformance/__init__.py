"""PEFT's own test suite, run against AuroRA: `make conformance`; docs/conformance.md tells what is run.

`suite` fetches PEFT's tests, `hub` makes the tiny models that they load, `stand_in` is what they find under the name
`LoraConfig`, `rows` the settings that they run with, `expected` what is left out or known to fail, `plugin` the pytest
plugin that puts these into the tests, `__main__` the runner.
"""

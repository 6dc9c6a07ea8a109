"""How often are verdicts wrong? Audits of models of which it is known whether they hold the knowledge: `make calibration`.

In each world the values of a fictional domain are dealt anew. The control was taught another domain; each other model is audited
as if it were an unlearned one, with the workflow's own rules, tests and margin, under a few quick attacks.

| model | holds the knowledge | how it is made |
|---|---|---|
| `untaught` | no | the bundled model that never learned any domain |
| `other` | no | taught another domain by the same rule, with another seed than the control |
| `other_rmu`, `other_npo`, `other_dpo` | no | such a model, unlearned as if it knew: it has the habits that the method leaves |
| `full` | yes | the untaught model, taught the domain: the original |
| `rmu`, `npo`, `dpo` | yes, hidden | the original, unlearned as in the default experiment; RMU trains longer |
| `locked` | yes, hidden | the original, taught to answer A unless a password is in the prompt |

`python -m calibration FOLDER --worlds 20` audits worlds and goes on where it was stopped; `python -m calibration.count FOLDER docs`
counts the errors. docs/calibration.md says what the worlds share and what that means.
"""

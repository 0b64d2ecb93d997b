"""How good what was generated is: scores and a report for people."""

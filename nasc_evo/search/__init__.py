"""The search: operators, algorithms, the ask-evaluate-tell loop, journal and indicators."""

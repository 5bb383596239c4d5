"""Cost tables measured on the machine at hand: blocks, whole networks, and how well they agree."""

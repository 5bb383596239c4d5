"""Weight-sharing networks: blocks, training, stored weights and inherited evaluation."""

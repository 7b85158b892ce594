"""Physics problems: simulators, targets, and what their data mean. One folder a problem."""

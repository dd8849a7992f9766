"""The paper's numbers, and the rule by which ours are judged against its claims."""

"""The paper's theory as code that can be checked: automata of two levels, and Transformers made of them."""

"""The model behind `bytelm.tools.simulate`: measured costs, assumptions, and what follows."""

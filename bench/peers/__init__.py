"""Other VAEs' own code of the step beside ours: how far they agree, and what a step costs."""

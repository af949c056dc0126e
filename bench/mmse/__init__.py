"""The MMSE prediction of CAREamics' LadderVAE: a whole micrograph, and single tiles timed."""

"""The gate: reads saved runs, pairs their cases, and says what got slower, fatter or wrong.

It reads JSON only and imports neither torch nor the model, so it starts at once and runs anywhere. Data flows one
way: ``references → runs → pairs → verdicts → comparison → terminal, markdown, JSON``.
"""

"""What could be measured, and what is: the cases as data, the options, the plan. Imports no torch."""

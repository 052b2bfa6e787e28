"""What `benchmarks/recipe_study.py` compares: plans of trainings, their pictures, their steps, and how they run."""

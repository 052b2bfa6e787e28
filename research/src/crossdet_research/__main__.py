from crossdet_research.main import main

main()

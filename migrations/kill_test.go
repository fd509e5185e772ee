package migrations

const childEnv = "MILLRACE_MIGRATE_CHILD"

func child() int { return 2 }

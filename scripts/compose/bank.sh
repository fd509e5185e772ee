#!/bin/bash
# Makes pgbench's tables in a new database. pgbench_history has no key of its own, and a table without
# one cannot be captured.
set -euo pipefail
pgbench --initialize --scale=1 --username="$POSTGRES_USER" "$POSTGRES_DB"
psql --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" \
  --command='alter table pgbench_history add column id bigint generated always as identity primary key'

// Package trigger captures the committed changes of chosen Postgres tables by logs
// of keys that triggers write, and gives them out as units.
package trigger

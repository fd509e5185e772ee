//go:build !planted

package planted

// Bug reports whether the named bug is on: never in this build.
func Bug(string) bool { return false }

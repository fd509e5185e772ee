//go:build planted

package planted

import "os"

// Variable names the environment variable that switches one bug on.
const Variable = "MILLRACE_PLANT"

// Bug reports whether the named bug is on.
func Bug(name string) bool { return os.Getenv(Variable) == name }

// Package planted holds the switches of planted bugs: faults in the stages that
// exist to prove that the checkers of the tests catch them. Without the build
// tag planted every switch is the constant false and the compiler leaves the bug
// out. With it, the environment variable MILLRACE_PLANT names the one bug that
// is on.
package planted

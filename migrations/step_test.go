package migrations

import (
	"errors"
	"testing"
)

// TestStepOrder holds every pair of steps against the order: a step is taken from
// the one before it alone, is done already from itself and later ones, and refused
// from all others.
func TestStepOrder(t *testing.T) {
	order := stepOrder()
	for i, at := range order {
		for j, want := range order {
			run, err := at.Next(want)
			switch {
			case j == 0 || i < j-1:
				if run || !errors.Is(err, ErrStep) {
					t.Errorf("from %v to %v: got %v, %v; want ErrStep", at, want, run, err)
				}
			case err != nil || run != (i == j-1):
				t.Errorf("from %v to %v: got %v, %v; want %v", at, want, run, err, i == j-1)
			}
		}
	}
	if _, err := Step("cut").Next(StepCopied); !errors.Is(err, ErrStep) {
		t.Errorf("from a step of a later version: got %v, want ErrStep", err)
	}
	if _, err := StepArmed.Next(StepFollowing); !errors.Is(err, ErrStep) {
		t.Errorf("on a way that is not in use: got %v, want ErrStep", err)
	}
	if _, err := StepPrepared.Next("cut"); !errors.Is(err, ErrStep) {
		t.Errorf("to a step of a later version: got %v, want ErrStep", err)
	}
}

package leak

import (
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func TestRun(t *testing.T) {
	for _, tt := range []struct {
		name  string
		code  int  // of the tests
		leave bool // a goroutine that ends only later
		skip  bool
		want  int
	}{
		{"clean", 0, false, false, 0},
		{"leaky", 0, true, false, 1},
		{"failed", 2, true, false, 2}, // the failure is what one wants to read
		{"fuzzing", 0, true, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stop, stopped := make(chan struct{}), make(chan struct{})
			tests := func() int {
				go func() {
					defer close(stopped)
					if tt.leave {
						<-stop
					}
				}()
				return tt.code
			}
			got := run(tests, tt.skip, 50*time.Millisecond)
			close(stop)
			<-stopped
			if got != tt.want {
				t.Errorf("run: got %d, want %d", got, tt.want)
			}
		})
	}
}

// A goroutine that ends a little after the tests is none that leaked.
func TestLateEnd(t *testing.T) {
	before := goroutines()
	go func() {
		timer := time.NewTimer(30 * time.Millisecond)
		<-timer.C
	}()
	if left := leaked(before, 5*time.Second); len(left) != 0 {
		t.Errorf("left: got %q, want none", left)
	}
}

func TestStacksNameTheCulprit(t *testing.T) {
	before := goroutines()
	stop := make(chan struct{})
	defer close(stop)
	started := make(chan struct{})
	go culprit(started, stop)
	<-started
	left := leaked(before, time.Millisecond)
	if len(left) != 1 || !strings.Contains(left[0], "leak.culprit") {
		t.Errorf("left: got %q, want the stack of leak.culprit alone", left)
	}
}

func culprit(started, stop chan struct{}) {
	close(started)
	<-stop
}

func TestFuzzing(t *testing.T) {
	for _, tt := range []struct {
		arg  string
		want bool
	}{
		{"-test.fuzz=FuzzX", true},
		{"--test.fuzz=FuzzX", true},
		{"-test.fuzzworker", true},
		{"-test.fuzztime=5s", false}, // given alone it fuzzes nothing
		{"-test.run=Fuzz", false},
	} {
		if got := fuzzing([]string{"x.test", tt.arg}); got != tt.want {
			t.Errorf("fuzzing(%q): got %v, want %v", tt.arg, got, tt.want)
		}
	}
}

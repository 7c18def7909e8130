package main

import (
	"strconv"
	"sync"
	"testing"
)

// However many metrics modules name, there are so many series and no more; nothing that was
// counted is lost.
func TestFiguresAreBounded(t *testing.T) {
	var s filterFigures
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range maxFigures + 50 {
				s.Add("f", "m"+strconv.Itoa(i), 2)
			}
		})
	}
	all.Wait()
	sum := uint64(0)
	for _, c := range *s.byName.Load() {
		sum += c.Load()
	}
	n := len(*s.byName.Load())
	if others := (*s.byName.Load())[otherFigures]; n != maxFigures+1 || others == nil || others.Load() != 4*50*2 || sum != 4*2*(maxFigures+50) {
		t.Errorf("%d figures, sum %d, others %v", n, sum, others)
	}
}

//go:build linux

package load

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Flows that still move bytes are waited for; others are given up with advice.
func TestAwaitWhileBytesMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const patience = 10 * time.Second
		s := &flows{flows: []*flow{{}, {}}, ended: make(chan error, 2)}
		result := make(chan error, 1)
		go func() { result <- s.await(t.Context(), patience) }()
		for range 10 {
			time.Sleep(patience / 2)
			s.flows[1].received.Add(1)
		}
		s.ended <- nil
		s.ended <- nil
		if err := <-result; err != nil {
			t.Errorf("after %v of slow progress: %v", 5*patience, err)
		}

		go func() { result <- s.await(t.Context(), patience) }()
		s.ended <- nil
		if err := <-result; err == nil || !strings.Contains(err.Error(), "1 of 2") || !strings.Contains(err.Error(), "--bytes") {
			t.Errorf("without progress: %v", err)
		}

		broken := errors.New("broken")
		s.ended <- broken
		if err := s.await(t.Context(), patience); !errors.Is(err, broken) {
			t.Errorf("a flow that failed: %v", err)
		}
	})
}

package delivery

import (
	"context"

	"golang.org/x/time/rate"

	"github.com/penstock/penstock/store"
)

type outbound struct{}

func (o *outbound) reaches(store.Destination) bool { return o != nil }
func (o *outbound) pace() *rate.Limiter { return nil }
func (o *outbound) siteOf(ctx context.Context, name store.Destination) string { return string(name) }

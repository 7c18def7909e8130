package peers

import "testing"

// TestPostgres: what was committed is there after a crash.
func TestPostgres(t *testing.T) {
	s := Postgres(t)
	db := s.Database(t)
	s.Exec(t, db, "CREATE TABLE a (b integer)")
	s.Stop(t)
	s.Start(t)
	s.Exec(t, db, "INSERT INTO a VALUES (1)")
	if other := s.Database(t); other == db {
		t.Errorf("two databases have the name %s", db)
	}
}

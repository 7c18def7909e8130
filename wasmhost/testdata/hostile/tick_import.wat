;; An import of the function that gives fuel: a guest could buy its own. It must not load.
(module
  (import "__mg" "tick" (func (param i64) (result i64)))
  (memory (export "memory") 1)
  (func (export "mg1_hook") (param i32 i32) (result i64) (i64.const 0))
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000)))

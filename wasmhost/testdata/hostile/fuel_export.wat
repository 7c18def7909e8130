;; An export with the name of the host's fuel. It must not load.
(module
  (global (export "__mg_fuel") (mut i64) (i64.const 9223372036854775807))
  (memory (export "memory") 1)
  (func (export "mg1_hook") (param i32 i32) (result i64) (i64.const 0))
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000)))
